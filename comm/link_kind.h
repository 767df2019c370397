/* comm/link_kind.h: what link.c and link_nccl.c share; nothing outside comm/ includes it. */
#ifndef SHEAF_COMM_LINK_KIND_H
#define SHEAF_COMM_LINK_KIND_H
#include "comm/link.h"
SF_C_BEGIN

/* All entries are required; as their namesakes in link.h. */
struct sf_link_ops {
    const char *kind;
    void      (*close)(struct sf_link *);
    sf_status (*sum)(struct sf_link *, float *x, size_t count);
    sf_status (*send)(struct sf_link *, int32_t to, const void *data, size_t bytes);
    sf_status (*recv)(struct sf_link *, int32_t from, void *data, size_t bytes);
    sf_status (*group)(struct sf_link *, int begin);
    sf_status (*all_gather)(struct sf_link *, const void *mine, size_t bytes, void *all);
    sf_status (*settle)(struct sf_link *);
};

struct sf_link {
    const struct sf_link_ops *ops;
    struct sf_comm *group;
    struct sf_link_spec spec;
    int64_t bytes_sent;
    int grouped;                        /* between begin 1 and begin 0 */
    void *impl;                         /* of the kind */
};

/* Collective.  *taken_out 1: the link is of kind nccl, ops and impl are set; 0: it has to be
 * another one. */
sf_status sf_link_nccl_open(struct sf_link *, int *taken_out);

SF_C_END
#endif
