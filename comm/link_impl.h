/* comm/link_impl.h: what the kinds of links share; nothing outside comm/ includes it. */
#ifndef SHEAF_COMM_LINK_IMPL_H
#define SHEAF_COMM_LINK_IMPL_H
#include "comm/link.h"
SF_C_BEGIN

struct sf_link_ops {                    /* all entries are required */
    const char *kind;
    void (*close)(struct sf_link *);    /* frees the link */
    void (*give_up)(struct sf_link *);
    sf_status (*sum)(struct sf_link *, float *x, size_t count);
    sf_status (*send)(struct sf_link *, int32_t to, const void *data, size_t bytes);
    sf_status (*recv)(struct sf_link *, int32_t from, void *data, size_t bytes);
    sf_status (*all_gather)(struct sf_link *, const void *mine, size_t bytes, void *all);
    sf_status (*settle)(struct sf_link *);
};
/* What every kind's own struct begins with. */
struct sf_link {
    const struct sf_link_ops *ops;
    struct sf_comm *group;
    struct sf_link_spec spec;
    int64_t bytes_sent;
};

/* Collective.  *out NULL: not all ranks can have it, and one line says why if that is news. */
sf_status sf_link_nccl_open(struct sf_comm *group, const struct sf_link_spec *,
                            struct sf_link **out);
/* How long a wait for a device goes on whose links have been given up; 10 s unless a test sets it,
 * while there is no link. */
void sf_link_nccl_set_drain(int64_t ms);
/* Collective: all ranks succeed or none does. */
sf_status sf_link_staged_open(struct sf_comm *group, const struct sf_link_spec *,
                              struct sf_link **out);

SF_C_END
#endif
