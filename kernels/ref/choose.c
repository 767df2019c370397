/* kernels/ref/choose.c: choices and scores in the order of their definition: the whole vocabulary
 * is sorted once. */
#include <stdlib.h>
#include "base/memory.h"
#include "kernels/choice.h"
#include "kernels/ref/ref.h"

struct entry { float logit; int32_t token; };

/* The order of tops and filters. */
static int likelier(const void *left, const void *right)
{
    const struct entry *a = left, *b = right;
    if (a->logit != b->logit) return a->logit < b->logit ? 1 : -1;
    return (a->token > b->token) - (a->token < b->token);
}

static int by_token(const void *left, const void *right)
{
    const struct entry *a = left, *b = right;
    return (a->token > b->token) - (a->token < b->token);
}

/* Sorted, likeliest first; 0 if there is no likeliest. */
static int sort_row(const float *logits, int32_t vocab, struct entry *entry)
{
    for (int32_t i = 0; i < vocab; i++) {
        if (isnan(logits[i]) || logits[i] == INFINITY) return 0;
        entry[i] = (struct entry){ logits[i] + 0.0f, i };         /* -0 counts as 0 */
    }
    qsort(entry, (size_t)vocab, sizeof *entry, likelier);
    return entry[0].logit > -INFINITY;
}

static uint64_t weight_of(const struct entry *entry, float highest, double temperature)
{
    return sf_choice_weight(sf_choice_exponent(entry->logit, highest, temperature));
}

/* Of sorted entries, how many the filters keep. */
static int32_t filter(const struct sf_choose_row *p, const struct entry *entry, int32_t vocab)
{
    double floor = sf_choice_floor(p->min_p);
    int32_t most = 0;
    uint64_t total = 0, sum = 0;
    while (most < vocab && (p->top_k <= 0 || most < p->top_k) &&
           sf_choice_exponent(entry[most].logit, entry[0].logit, p->temperature) >= floor)
        total += weight_of(&entry[most++], entry[0].logit, p->temperature);
    if (p->top_p >= 1.0) return most;
    for (int32_t i = 0; i < most; i++) {
        sum += weight_of(&entry[i], entry[0].logit, p->temperature);
        if (sum >= sf_choice_share(p->top_p, total)) return i + 1;
    }
    return most;
}

static int32_t draw(const struct sf_choose_row *p, struct entry *entry, int32_t vocab)
{
    int32_t kept = filter(p, entry, vocab);
    float highest = entry[0].logit;
    uint64_t total = 0, sum = 0;
    for (int32_t i = 0; i < kept; i++) total += weight_of(&entry[i], highest, p->temperature);
    qsort(entry, (size_t)kept, sizeof *entry, by_token);
    for (int32_t i = 0; i < kept; i++) {
        sum += weight_of(&entry[i], highest, p->temperature);
        if (sum > sf_choice_target(p->u, total)) return entry[i].token;
    }
    SF_ASSERT(!"some token reaches the whole sum");
    return -1;
}

static void score(const struct sf_choose_row *p, const struct entry *entry, int32_t vocab,
                  struct sf_choice *choice, struct sf_choice_top *top)
{
    int32_t token = p->score == SF_SCORE_CHOSEN ? choice->token : p->score;
    choice->scored = token;
    choice->highest = entry[0].logit;
    for (int32_t i = 0; i < vocab; i++) {
        double x = sf_choice_exponent(entry[i].logit, entry[0].logit, 1.0);
        if (x >= SF_CHOICE_LEAST) choice->sum += sf_choice_weight(x);
        if (i < p->tops && entry[i].logit > -INFINITY)
            top[choice->tops++] = (struct sf_choice_top){ entry[i].token, entry[i].logit };
        if (entry[i].token != token) continue;
        choice->rank = i + 1;
        choice->logit = entry[i].logit;
    }
}

void sf_ref_choose(struct sf_device *device, const struct sf_choose_job *job)
{
    size_t vocab = (size_t)job->vocab;
    struct entry *entry = malloc(vocab * sizeof *entry);
    float *changed = malloc(vocab * sizeof *changed);
    (void)device;
    SF_ASSERT(entry && changed);
    for (int32_t r = 0; r < job->rows; r++) {
        const struct sf_choose_row *p = &job->row[r];
        struct sf_choice *choice = &job->choice[r];
        const float *logits = job->logits + (size_t)p->row * job->stride;
        memset(choice, 0, sizeof *choice);
        choice->token = -1;
        if (!sort_row(logits, job->vocab, entry)) continue;
        memcpy(changed, logits, vocab * sizeof *changed);
        for (int32_t i = 0; p->sample && i < p->biases; i++)
            changed[p->bias[i].token] += p->bias[i].value;
        for (int32_t i = 0; p->sample && i < p->seen; i++) {
            float *l = &changed[p->token[i].token];
            *l = sf_choice_penalised(*l, p->token[i].count, p->repetition, p->frequency,
                                     p->presence);
        }
        if (p->sample && sort_row(changed, job->vocab, entry))
            choice->token = p->temperature > 0.0 ? draw(p, entry, job->vocab) : entry[0].token;
        if (p->score == SF_SCORE_NONE || (p->score == SF_SCORE_CHOSEN && choice->token < 0))
            continue;
        sort_row(logits, job->vocab, entry);
        score(p, entry, job->vocab, choice, job->top + (size_t)r * SF_CHOICE_TOPS_MAX);
    }
    free(entry);
    free(changed);
}
