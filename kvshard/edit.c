/* kvshard/edit.c: answers of methods: recorded and checked against the rules (apply.c carries out).
 *
 * An edit is checked when it is given, so the method's author gets the reason at the call; the
 * first refusal is kept in the answer as well, and then nothing of the answer is applied, whatever
 * the method does with the status.  What was accepted is copied into step memory. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kvshard/store_impl.h"

/* ---- refusing ------------------------------------------------------------------------------- */
static sf_status refuse(struct sf_answer *answer, sf_status status)
{
    if (answer->refused == SF_OK) {
        answer->refused = status;
        snprintf(answer->words, sizeof answer->words, "%s", sf_error_text());
    }
    return status;
}

static const char *method_name(const struct sf_answer *answer)
{
    return answer->method->entry->method->name;
}

static sf_status unsupported(struct sf_answer *answer, const char *what)
{
    return refuse(answer, SF_FAIL(SF_UNSUPPORTED, "%s: %s is not built yet", method_name(answer),
                                  what));
}

/* The view behind a lane; an edit a lane, and only while the hook runs. */
static sf_status view_of(struct sf_answer *answer, const struct sf_lane *lane,
                         struct sf_view **view_out)
{
    if (lane < answer->shown || lane >= answer->shown + answer->views)
        return SF_FAIL(SF_INVALID, "%s: edit of a lane that this event did not show",
                       method_name(answer));
    struct sf_view *view = &answer->view[lane - answer->shown];
    if (answer->selects)
        return SF_FAIL(SF_INVALID, "%s: edit in select()", method_name(answer));
    if (view->edit)
        return SF_FAIL(SF_INVALID, "%s: second edit of layer %d head %d in one answer",
                       method_name(answer), lane->layer, lane->head_global);
    *view_out = view;
    return SF_OK;
}

static sf_status dup(struct sf_answer *answer, const void *source, size_t count, size_t item_bytes,
                     void *out)
{
    void *copy;
    SF_TRY(sf_scratch_items(&answer->store->host, count, item_bytes, &copy));
    if (count > 0) memcpy(copy, source, count * item_bytes);
    memcpy(out, &copy, sizeof copy);
    return SF_OK;
}

/* A lane that has reached its trigger comes back to its budget, and under pressure every one does,
 * so that what admission counted on holds; protected slots stay even where they are more. */
static sf_status check_budget(const struct sf_answer *answer, const struct sf_lane *lane,
                              const struct sf_view *view, int32_t slots_left)
{
    int32_t guarded = 0;
    if (lane->slots_keep == 0 || slots_left <= lane->slots_keep ||
        (answer->when != SF_AT_PRESSURE && lane->slots < lane->slots_trigger))
        return SF_OK;
    for (int32_t s = 0; s < lane->slots; s++)
        guarded += sf_is_protected(&answer->method->entry->plan, view->tokens, lane->pos[s]);
    if (slots_left <= guarded) return SF_OK;
    return SF_FAIL(SF_INVALID, "%s: edit of layer %d head %d leaves %d of %d slots, its budget is"
                   " %d", method_name(answer), lane->layer, lane->head_global, slots_left,
                   lane->slots, lane->slots_keep);
}

/* Whether every tier of the plan can bear the edit. */
static sf_status check_codecs(const struct sf_answer *answer, uint32_t fact, const char *edit)
{
    const struct sf_plan *plan = &answer->method->entry->plan;
    for (int32_t t = 0; t < plan->tiers; t++)
        if (!(sf_codec_of(plan, t)->facts & fact))
            return SF_FAIL(SF_INVALID, "%s: %s of a lane with a tier of codec %s, which cannot bear"
                           " it", method_name(answer), edit, plan->tier[t].codec);
    return SF_OK;
}

/* ---- budget --------------------------------------------------------------------------------- */
static sf_status record_budget(struct sf_answer *answer, const struct sf_lane *lane, int32_t keep,
                               int32_t trigger)
{
    struct sf_view *view;
    SF_TRY(view_of(answer, lane, &view));
    const struct sf_store_method *method = answer->method;
    struct sf_spot spot = { .layer = lane->layer, .head_global = lane->head_global,
                            .prompt = view->seq->prompt, .tokens = view->seq->tokens_max,
                            .tightened = view->seq->tightened };
    struct sf_foot foot = { .slots_peak = spot.prompt };
    SF_TRY(method->entry->method->policy->footprint(&method->setup, &spot, &foot));
    int32_t most = trigger - 1 < spot.tokens ? trigger - 1 : spot.tokens;
    if (keep < 1 || trigger < keep || most > foot.slots_hi[0])
        return SF_FAIL(SF_INVALID, "%s: budget of layer %d head %d: keep %d, trigger %d; its"
                       " footprint allows up to %d slots", method_name(answer), lane->layer,
                       lane->head_global, keep, trigger, foot.slots_hi[0]);
    struct sf_lane *shown = &answer->shown[lane - answer->shown];
    shown->slots_keep = keep;
    shown->slots_trigger = trigger;
    return SF_OK;
}

sf_status sf_edit_budget(struct sf_answer *answer, const struct sf_lane *lane, int32_t slots_keep,
                         int32_t slots_trigger)
{
    sf_status status = record_budget(answer, lane, slots_keep, slots_trigger);
    return status == SF_OK ? SF_OK : refuse(answer, status);
}

/* ---- keep ----------------------------------------------------------------------------------- */
static sf_status check_keep(const struct sf_answer *answer, const struct sf_lane *lane,
                            const struct sf_view *view, struct sf_list list)
{
    const struct sf_plan *plan = &answer->method->entry->plan;
    const char *name = method_name(answer);
    if (list.n < 0 || list.n > lane->slots)
        return SF_FAIL(SF_INVALID, "%s: keep of %d slots of layer %d head %d, which has %d", name,
                       list.n, lane->layer, lane->head_global, lane->slots);
    int32_t next = 0;                   /* first slot that is not decided yet */
    for (int32_t i = 0; i <= list.n; i++) {
        int32_t id = i < list.n ? list.ids[i] : lane->slots;
        if (i < list.n && (id < 0 || id >= lane->slots))
            return SF_FAIL(SF_INVALID, "%s: keep of slot %d of layer %d head %d, which has %d",
                           name, id, lane->layer, lane->head_global, lane->slots);
        if (id < next)
            return SF_FAIL(SF_INVALID, "%s: keep of layer %d head %d does not ascend: slot %d comes"
                           " after %d", name, lane->layer, lane->head_global, id, next - 1);
        for (; next < id; next++)
            if (sf_is_protected(plan, view->tokens, lane->pos[next]))
                return SF_FAIL(SF_INVALID, "%s: keep of layer %d head %d drops position %d, which"
                               " is protected (%d sinks, %d newest of %d tokens)", name,
                               lane->layer, lane->head_global, lane->pos[next], plan->sink_tokens,
                               plan->tail_tokens, view->tokens);
        next = id + 1;
    }
    return check_budget(answer, lane, view, list.n);
}

static sf_status record_keep(struct sf_answer *answer, const struct sf_lane *lane,
                             struct sf_list list)
{
    struct sf_view *view;
    SF_TRY(view_of(answer, lane, &view));
    if (list.n == -1) {                 /* all: an edit that changes nothing */
        SF_TRY(check_budget(answer, lane, view, lane->slots));
        view->edit = SF_EDITS_KEEP;
        view->keeps = lane->slots;
        return SF_OK;
    }
    if (list.n > 0 && !list.ids)
        return SF_FAIL(SF_UNSUPPORTED, "%s: keep with a list on the device is not built yet",
                       method_name(answer));
    SF_TRY(check_codecs(answer, SF_CAN_DROP, "keep"));
    SF_TRY(check_keep(answer, lane, view, list));
    SF_TRY(dup(answer, list.ids, (size_t)list.n, sizeof *list.ids, &view->keep));
    view->keeps = list.n;
    view->edit = SF_EDITS_KEEP;
    return SF_OK;
}

sf_status sf_edit_keep(struct sf_answer *answer, const struct sf_lane *lane, struct sf_list slots)
{
    if (!(answer->method->entry->plan.edits & SF_EDITS_KEEP))
        return refuse(answer, SF_FAIL(SF_INVALID, "%s: keep, which its plan does not declare",
                                      method_name(answer)));
    sf_status status = record_keep(answer, lane, slots);
    return status == SF_OK ? SF_OK : refuse(answer, status);
}

/* ---- mix ------------------------------------------------------------------------------------ */
int sf_mix_is_copy(const struct sf_lane *lane, const struct sf_mix *mix, int32_t i)
{
    int32_t j = mix->ptr[i], s = mix->src[j];
    return mix->ptr[i + 1] == j + 1 && sf_mix_tier(lane, mix, i) == lane->tier[s] &&
           mix->k_weight[j] == 1.0f && mix->v_weight[j] == 1.0f &&
           mix->pos[i] == lane->pos[s] && mix->bias[i] == lane->bias[s];
}

static sf_status check_mix_row(const struct sf_answer *answer, const struct sf_lane *lane,
                               const struct sf_view *view, const struct sf_mix *mix, int32_t i)
{
    const char *name = method_name(answer);
    if (mix->ptr[i + 1] <= mix->ptr[i])
        return SF_FAIL(SF_INVALID, "%s: new slot %d of layer %d head %d has no source", name, i,
                       lane->layer, lane->head_global);
    if (mix->pos[i] < 0 || mix->pos[i] >= view->tokens || !isfinite(mix->bias[i]))
        return SF_FAIL(SF_INVALID, "%s: new slot %d of layer %d head %d has position %d of %d"
                       " tokens and bias %g", name, i, lane->layer, lane->head_global, mix->pos[i],
                       view->tokens, (double)mix->bias[i]);
    if (mix->tier && mix->tier[i] != 0 && mix->tier[i] >= answer->method->entry->plan.tiers)
        return SF_FAIL(SF_INVALID, "%s: new slot %d of layer %d head %d in tier %d, its plan has"
                       " %d", name, i, lane->layer, lane->head_global, mix->tier[i],
                       answer->method->entry->plan.tiers);
    for (int32_t j = mix->ptr[i]; j < mix->ptr[i + 1]; j++)
        if (mix->src[j] < 0 || mix->src[j] >= lane->slots || !isfinite(mix->k_weight[j]) ||
            !isfinite(mix->v_weight[j]))
            return SF_FAIL(SF_INVALID, "%s: new slot %d of layer %d head %d has source %d of %d"
                           " with weights %g and %g", name, i, lane->layer, lane->head_global,
                           mix->src[j], lane->slots, (double)mix->k_weight[j],
                           (double)mix->v_weight[j]);
    return SF_OK;
}

static sf_status check_mix(const struct sf_answer *answer, const struct sf_lane *lane,
                           const struct sf_view *view, const struct sf_mix *mix)
{
    const char *name = method_name(answer);
    if (mix->flags & ~(SF_MIX_FOLD | SF_MIX_ROTATE))
        return SF_FAIL(SF_INVALID, "%s: mix with flags %d", name, mix->flags);
    if (mix->flags & SF_MIX_ROTATE &&
        !(answer->method->entry->plan.edits & SF_EDITS_ROTATE))
        return SF_FAIL(SF_INVALID, "%s: mix that rotates keys, which its plan does not declare",
                       name);
    for (int w = 0; w < 2; w++)
        if (mix->mass[w] && !sf_is_watched(&answer->method->entry->plan, w))
            return SF_FAIL(SF_INVALID, "%s: mix with attention mass, but its plan watches none",
                           name);
    if (mix->dense_slots != 0 || mix->dense)
        return SF_FAIL(SF_UNSUPPORTED, "%s: mix with a dense matrix is not built yet", name);
    if (mix->slots < 0 || mix->slots > lane->slots)
        return SF_FAIL(SF_INVALID, "%s: mix makes %d slots of the %d of layer %d head %d", name,
                       mix->slots, lane->slots, lane->layer, lane->head_global);
    if (mix->slots > 0 && (!mix->ptr || !mix->src || !mix->k_weight || !mix->v_weight ||
                           !mix->pos || !mix->bias))
        return SF_FAIL(SF_INVALID, "%s: mix without sources, weights, pos or bias", name);
    if (mix->slots > 0 && mix->ptr[0] != 0)
        return SF_FAIL(SF_INVALID, "%s: the sources of a mix begin at %d, not 0", name,
                       mix->ptr[0]);
    uint8_t *copied;
    SF_TRY(sf_scratch_items(&answer->store->host, (size_t)lane->slots + 1, 1, &copied));
    memset(copied, 0, (size_t)lane->slots);
    SF_TRY(check_codecs(answer, SF_CAN_MIX, "mix"));
    for (int32_t i = 0; i < mix->slots; i++) {
        SF_TRY(check_mix_row(answer, lane, view, mix, i));
        if (sf_mix_is_copy(lane, mix, i)) copied[mix->src[mix->ptr[i]]] = 1;
    }
    const struct sf_plan *plan = &answer->method->entry->plan;
    for (int32_t s = 0; s < lane->slots; s++)
        if (!copied[s] && sf_is_protected(plan, view->tokens, lane->pos[s]))
            return SF_FAIL(SF_INVALID, "%s: mix of layer %d head %d changes position %d, which is"
                           " protected (%d sinks, %d newest of %d tokens)", name, lane->layer,
                           lane->head_global, lane->pos[s], plan->sink_tokens, plan->tail_tokens,
                           view->tokens);
    return check_budget(answer, lane, view, mix->slots);
}

static sf_status record_mix(struct sf_answer *answer, const struct sf_lane *lane,
                            const struct sf_mix *mix)
{
    struct sf_view *view;
    SF_TRY(view_of(answer, lane, &view));
    SF_TRY(check_mix(answer, lane, view, mix));
    size_t slots = (size_t)mix->slots, sources = slots ? (size_t)mix->ptr[slots] : 0;
    struct sf_mix *copy = &view->mix;
    memset(copy, 0, sizeof *copy);
    copy->slots = mix->slots;
    copy->flags = mix->flags;
    if (slots > 0) {
        SF_TRY(dup(answer, mix->ptr, slots + 1, sizeof *mix->ptr, &copy->ptr));
        SF_TRY(dup(answer, mix->src, sources, sizeof *mix->src, &copy->src));
        SF_TRY(dup(answer, mix->k_weight, sources, sizeof(float), &copy->k_weight));
        SF_TRY(dup(answer, mix->v_weight, sources, sizeof(float), &copy->v_weight));
        SF_TRY(dup(answer, mix->pos, slots, sizeof *mix->pos, &copy->pos));
        SF_TRY(dup(answer, mix->bias, slots, sizeof *mix->bias, &copy->bias));
        for (int w = 0; w < 2; w++)
            if (mix->mass[w])
                SF_TRY(dup(answer, mix->mass[w], slots, sizeof(float), &copy->mass[w]));
        if (mix->tier) SF_TRY(dup(answer, mix->tier, slots, 1, &copy->tier));
        if (mix->aux)
            SF_TRY(dup(answer, mix->aux, slots,
                       (size_t)answer->method->entry->plan.aux_bytes, &copy->aux));
    }
    view->edit = SF_EDITS_MIX;
    return SF_OK;
}

sf_status sf_edit_mix(struct sf_answer *answer, const struct sf_lane *lane,
                      const struct sf_mix *mix)
{
    if (!(answer->method->entry->plan.edits & SF_EDITS_MIX))
        return refuse(answer, SF_FAIL(SF_INVALID, "%s: mix, which its plan does not declare",
                                      method_name(answer)));
    if (mix->aux && answer->method->entry->plan.aux_bytes == 0)
        return refuse(answer, SF_FAIL(SF_INVALID, "%s: mix with aux, but its plan has aux_bytes 0",
                                      method_name(answer)));
    sf_status status = record_mix(answer, lane, mix);
    return status == SF_OK ? SF_OK : refuse(answer, status);
}

/* ---- tier ----------------------------------------------------------------------------------- */
static sf_status record_tier(struct sf_answer *answer, const struct sf_lane *lane,
                             struct sf_list list, int tier)
{
    const struct sf_plan *plan = &answer->method->entry->plan;
    const char *name = method_name(answer);
    struct sf_view *view;
    SF_TRY(view_of(answer, lane, &view));
    SF_TRY(check_codecs(answer, SF_CAN_RECODE, "move between tiers"));
    if (tier < 0 || tier >= plan->tiers)
        return SF_FAIL(SF_INVALID, "%s: move to tier %d, its plan has %d", name, tier, plan->tiers);
    int32_t n = list.n == -1 ? lane->slots : list.n;
    if (n < 0 || (n > 0 && list.n != -1 && !list.ids))
        return SF_FAIL(SF_UNSUPPORTED, "%s: move between tiers of %d slots, or by a list on the"
                       " device", name, n);
    uint8_t *to = view->to_tier;
    if (!to) SF_TRY(dup(answer, lane->tier, (size_t)lane->slots, 1, &to));
    for (int32_t i = 0; i < n; i++) {
        int32_t s = list.n == -1 ? i : list.ids[i];
        if (s < 0 || s >= lane->slots)
            return SF_FAIL(SF_INVALID, "%s: move of slot %d of layer %d head %d, which has %d",
                           name, s, lane->layer, lane->head_global, lane->slots);
        if (sf_is_protected(plan, view->tokens, lane->pos[s]))
            return SF_FAIL(SF_INVALID, "%s: move of position %d of layer %d head %d, which is"
                           " protected (%d sinks, %d newest of %d tokens)", name, lane->pos[s],
                           lane->layer, lane->head_global, plan->sink_tokens, plan->tail_tokens,
                           view->tokens);
        to[s] = (uint8_t)tier;
    }
    view->to_tier = to;
    return SF_OK;
}

sf_status sf_edit_tier(struct sf_answer *answer, const struct sf_lane *lane, struct sf_list slots,
                       int tier)
{
    if (!(answer->method->entry->plan.edits & SF_EDITS_TIER))
        return refuse(answer, SF_FAIL(SF_INVALID, "%s: a move between tiers, which its plan does"
                                      " not declare", method_name(answer)));
    sf_status status = record_tier(answer, lane, slots, tier);
    return status == SF_OK ? SF_OK : refuse(answer, status);
}

/* ---- group ---------------------------------------------------------------------------------- */
static sf_status check_group_lane(const struct sf_answer *answer, const struct sf_span *span,
                                  const struct sf_lane *lane, struct sf_list list, int tier)
{
    const struct sf_plan *plan = &answer->method->entry->plan;
    const char *name = method_name(answer);
    if (lane->slots != span->lane[0].slots)
        return SF_FAIL(SF_INVALID, "%s: a group of lanes of %d and %d slots", name,
                       span->lane[0].slots, lane->slots);
    for (int32_t s = list.ids[0] < 0 ? 0 : list.ids[0]; s < lane->slots; s++)
        if (lane->tier[s] == tier)
            return SF_FAIL(SF_INVALID, "%s: slot %d of layer %d head %d comes into a group that has"
                           " slot %d, behind it", name, list.ids[0], lane->layer,
                           lane->head_global, s);
    for (int32_t i = 0; i < list.n; i++) {
        int32_t s = list.ids[i];
        if (s < 0 || s >= lane->slots || (i > 0 && s <= list.ids[i - 1]))
            return SF_FAIL(SF_INVALID, "%s: slot %d of layer %d head %d, which has %d, comes into a"
                           " group out of order", name, s, lane->layer, lane->head_global,
                           lane->slots);
        if (lane->pos[s] != span->lane[0].pos[s] || lane->tier[s] != 0 || lane->bias[s] != 0.0f)
            return SF_FAIL(SF_INVALID, "%s: slot %d of layer %d head %d is not a raw one of the"
                           " group's token %d", name, s, lane->layer, lane->head_global,
                           span->lane[0].pos[s]);
        if (sf_is_protected(plan, span->tokens, lane->pos[s]))
            return SF_FAIL(SF_INVALID, "%s: position %d of layer %d head %d comes into a group, but"
                           " is protected (%d sinks, %d newest of %d tokens)", name, lane->pos[s],
                           lane->layer, lane->head_global, plan->sink_tokens, plan->tail_tokens,
                           span->tokens);
    }
    return SF_OK;
}

static sf_status record_group(struct sf_answer *answer, const struct sf_span *span,
                              struct sf_list list, int tier)
{
    const struct sf_plan *plan = &answer->method->entry->plan;
    const char *name = method_name(answer);
    if (span < answer->span || span >= answer->span + answer->spans)
        return SF_FAIL(SF_INVALID, "%s: group of a span that this event did not show", name);
    if (answer->selects) return SF_FAIL(SF_INVALID, "%s: edit in select()", name);
    struct sf_group_edit *edit = &answer->group[span - answer->span];
    const struct sf_view *view = &answer->view[span->lane - answer->shown];
    int32_t g = sf_group_of(answer->store, view->layer, view->lane_index);
    if (tier < 1 || tier >= plan->tiers || g < 0 || answer->store->groups.group[g].tier != tier)
        return SF_FAIL(SF_INVALID, "%s: group into tier %d, which is none for groups", name, tier);
    if (edit->tier > 0 || answer->store->groups.group[g].lanes != span->lanes)
        return SF_FAIL(SF_INVALID, "%s: second edit of a group in one answer, or one of a part of"
                       " it", name);
    if (list.n < 1 || !list.ids)
        return SF_FAIL(SF_UNSUPPORTED, "%s: group of %d slots, or by a list on the device", name,
                       list.n);
    for (int32_t l = 0; l < span->lanes; l++)
        SF_TRY(check_group_lane(answer, span, &span->lane[l], list, tier));
    SF_TRY(dup(answer, list.ids, (size_t)list.n, sizeof *list.ids, &edit->ids));
    edit->n = list.n;
    edit->tier = tier;
    return SF_OK;
}

/* Slots of the list that lane l keeps raw as well. */
static sf_status record_exact(struct sf_answer *answer, const struct sf_span *span, int32_t l,
                              struct sf_list list, struct sf_list exact)
{
    const struct sf_lane *lane = &span->lane[l];
    struct sf_view *view = &answer->view[lane - answer->shown];
    const char *name = method_name(answer);
    if (exact.n > 0 && !(answer->method->entry->plan.needs & SF_NEED_SELECT_DECODE))
        return SF_FAIL(SF_INVALID, "%s: a group of which lanes keep slots raw as well, but nothing"
                       " would pick what they read of it", name);
    if (exact.n < 0 || exact.n > list.n || (exact.n > 0 && !exact.ids))
        return SF_FAIL(SF_INVALID, "%s: %d slots of layer %d head %d stay raw of %d in a group",
                       name, exact.n, lane->layer, lane->head_global, list.n);
    for (int32_t i = 0, j = 0; i < exact.n; i++, j++) {
        while (j < list.n && list.ids[j] < exact.ids[i]) j++;
        if (j == list.n || list.ids[j] != exact.ids[i])
            return SF_FAIL(SF_INVALID, "%s: slot %d of layer %d head %d stays raw, but is none of"
                           " the group's, or out of order", name, exact.ids[i], lane->layer,
                           lane->head_global);
    }
    SF_TRY(dup(answer, exact.ids, (size_t)exact.n, sizeof *exact.ids, &view->exact));
    view->exacts = exact.n;
    return SF_OK;
}

sf_status sf_edit_group(struct sf_answer *answer, const struct sf_span *span, struct sf_list slots,
                        int tier, const struct sf_list *exact)
{
    if (!(answer->method->entry->plan.edits & SF_EDITS_GROUP))
        return refuse(answer, SF_FAIL(SF_INVALID, "%s: group, which its plan does not declare",
                                      method_name(answer)));
    sf_status status = record_group(answer, span, slots, tier);
    for (int32_t l = 0; exact && status == SF_OK && l < span->lanes; l++)
        status = record_exact(answer, span, l, slots, exact[l]);
    return status == SF_OK ? SF_OK : refuse(answer, status);
}

/* ---- landmarks ------------------------------------------------------------------------------ */
static sf_status record_marks(struct sf_answer *answer, const struct sf_lane *lane,
                              const struct sf_marks *marks)
{
    const char *name = method_name(answer);
    struct sf_view *view;
    SF_TRY(view_of(answer, lane, &view));
    size_t n = (size_t)(marks->n > 0 ? marks->n : 0), dim;
    const struct sf_kv_lane *list = sf_group_marks(answer->store, view->seq, view->layer,
                                                   view->lane_index);
    int32_t most = sf_marks_most(&answer->method->entry->plan, view->seq->tokens_max);
    if (!list || list->live > 0 || view->marks > 0)
        return SF_FAIL(SF_INVALID, "%s: landmarks of layer %d head %d, which %s", name, lane->layer,
                       lane->head_global, list ? "has some" : "can have none");
    if (marks->n < 1 || marks->n > most || !marks->chunk || !marks->key)
        return SF_FAIL(SF_INVALID, "%s: %d landmarks of layer %d head %d, at most %d are possible",
                       name, marks->n, lane->layer, lane->head_global, most);
    for (int32_t i = 0; i < marks->n; i++)
        if (marks->chunk[i] < 0 || marks->chunk[i] >= most ||
            (i > 0 && marks->chunk[i] <= marks->chunk[i - 1]))
            return SF_FAIL(SF_INVALID, "%s: landmark %d of layer %d head %d stands for chunk %d of"
                           " %d", name, i, lane->layer, lane->head_global, marks->chunk[i], most);
    dim = (size_t)answer->store->layer[view->layer].layout.k_dim;
    SF_TRY(dup(answer, marks->chunk, n, sizeof *marks->chunk, &view->chunk));
    SF_TRY(dup(answer, marks->key, n, dim * sizeof *marks->key, &view->key));
    view->marks = marks->n;
    return SF_OK;
}

sf_status sf_edit_marks(struct sf_answer *answer, const struct sf_lane *lane,
                        const struct sf_marks *marks)
{
    sf_status status = record_marks(answer, lane, marks);
    return status == SF_OK ? SF_OK : refuse(answer, status);
}

/* ---- what is not built ---------------------------------------------------------------------- */
sf_status sf_edit_side(struct sf_answer *answer, const struct sf_lane *lane, int tier,
                       struct sf_buf *side)
{
    (void)lane; (void)tier; (void)side;
    return unsupported(answer, "an edit of a codec's side data");
}

sf_status sf_pick_slots(struct sf_answer *answer, const struct sf_lane *lane, int q_head,
                        struct sf_list slots)
{
    (void)lane; (void)q_head; (void)slots;
    return unsupported(answer, "a pick of slots");
}

sf_status sf_pick_lines(struct sf_answer *answer, const struct sf_lane *lane, int q_head,
                        const struct sf_lines *lines)
{
    (void)lane; (void)q_head; (void)lines;
    return unsupported(answer, "a pick of lines");
}

sf_status sf_pick_rows(struct sf_answer *answer, const struct sf_span *span, struct sf_list rows)
{
    (void)span; (void)rows;
    return unsupported(answer, "a pick of rows");
}
