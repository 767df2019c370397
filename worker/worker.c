/* worker/worker.c: the life of a worker: everything it will ever need is taken at open, in sizes
 * that the plan has predicted; run() takes one step after another until one says stop. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "worker/state.h"

/* ---- buffers ---- */

static sf_status take(struct sf_worker *w, int64_t bytes, const char *what, void *pointer_out)
{
    void *block = NULL;
    if (bytes > 0) SF_TRY(w->device->k->alloc(w->device, (size_t)bytes, what, &block));
    memcpy(pointer_out, &block, sizeof block);
    w->stats.workspace_bytes += bytes;
    return SF_OK;
}

static sf_status take_host(size_t count, size_t item_bytes, const char *what, void *pointer_out)
{
    void *block;
    SF_TRY(sf_alloc(count * item_bytes, what, &block));
    memcpy(pointer_out, &block, sizeof block);
    return SF_OK;
}

/* What the device tells the host at the end of a step. */
static sf_status take_told(struct sf_worker *w, size_t count, size_t item_bytes, const char *what,
                           void *pointer_out)
{
    void *block;
    if (w->device->host_memory) return take_host(count, item_bytes, what, pointer_out);
    SF_TRY(w->device->k->host_alloc(w->device, count * item_bytes, what, &block));
    memcpy(pointer_out, &block, sizeof block);
    return SF_OK;
}

/* Where the device chooses tokens: see sf_head. */
static sf_status take_choices(struct sf_worker *w)
{
    size_t rows = (size_t)w->ws.rows_pad, tops = rows * SF_CHOICE_TOPS_MAX;
    if (w->device->host_memory || w->ws.choices == 0) return SF_OK;
    SF_TRY(take(w, (int64_t)(rows * sizeof *w->choice), "choices of tokens", &w->choice));
    SF_TRY(take(w, (int64_t)(tops * sizeof *w->choice_top), "likeliest tokens", &w->choice_top));
    SF_TRY(take_host((size_t)w->ws.head_rows, sizeof *w->choose_row, "rows that choose",
                     &w->choose_row));
    SF_TRY(take_told(w, rows, sizeof *w->choice_host, "choices of tokens", &w->choice_host));
    return take_told(w, tops, sizeof *w->choice_top_host, "likeliest tokens",
                     &w->choice_top_host);
}

static sf_status take_buffers(struct sf_worker *w)
{
    const struct sf_workspace *ws = &w->ws;
    size_t rows = (size_t)ws->rows_pad, seqs = (size_t)w->spec.seqs_max;
    size_t head = (size_t)ws->head_rows, ranks = (size_t)w->spec.share->tp_size;
    SF_TRY(take(w, ws->residual, "the residual", &w->residual));
    SF_TRY(take(w, ws->normed, "normed rows", &w->normed));
    SF_TRY(take(w, ws->qkv, "queries, keys and values", &w->qkv));
    SF_TRY(take(w, ws->attention, "attention outputs", &w->attention));
    SF_TRY(take(w, ws->gate_up, "gate and up", &w->gate_up));
    SF_TRY(take(w, ws->activation, "activations", &w->activation));
    SF_TRY(take(w, ws->rope, "rotation tables", &w->rope));
    SF_TRY(take(w, ws->transfer, "rows to the next stage", &w->transfer));
    SF_TRY(take(w, ws->head_rows_in, "rows for the output head", &w->head_rows_in));
    SF_TRY(take(w, ws->logits, "logits", &w->logits));
    if (w->device->host_memory || ws->logits_all == 0)
        SF_TRY(take(w, ws->logits_all, "logits of all ranks", &w->logits_all));
    else
        SF_TRY(take_host(1, (size_t)ws->logits_all, "logits of all ranks", &w->logits_all));
    SF_TRY(take_host(rows, sizeof *w->row_pos, "row positions", &w->row_pos));
    SF_TRY(take_host(rows, sizeof *w->row_token, "row tokens", &w->row_token));
    SF_TRY(take_host(rows, sizeof *w->head_row, "head rows", &w->head_row));
    SF_TRY(take_host(rows, sizeof *w->head_item, "head items", &w->head_item));
    SF_TRY(take_host(seqs, sizeof *w->kv_item, "cache items", &w->kv_item));
    SF_TRY(take_host(seqs, sizeof *w->item_row, "rows of items", &w->item_row));
    SF_TRY(take_host((size_t)w->spec.besides + 2, sizeof *w->kv_first, "cache items by stack",
                     &w->kv_first));
    SF_TRY(take_host((size_t)w->spec.besides + 1, sizeof *w->stores, "caches", &w->stores));
    SF_TRY(take_host(seqs, sizeof *w->sample, "samples", &w->sample));
    SF_TRY(take_told(w, head, sizeof *w->best_value, "best logits", &w->best_value));
    SF_TRY(take_told(w, head, sizeof *w->best_index, "best tokens", &w->best_index));
    SF_TRY(take_host(head, sizeof *w->best, "best of a slice", &w->best));
    SF_TRY(take_host(head * ranks, sizeof *w->best_all, "best of all slices", &w->best_all));
    SF_TRY(take_host(ranks + 1, sizeof *w->vocab_first, "vocabulary slices", &w->vocab_first));
    SF_TRY(take_host(ranks, sizeof *w->block_leaf, "column blocks", &w->block_leaf));
    for (int32_t r = 0; r < (int32_t)ranks; r++) w->block_leaf[r] = (struct sf_leaf){r, 0};
    return take_choices(w);
}

static void free_buffers(struct sf_worker *w)
{
    void *on_device[] = {w->residual, w->normed, w->qkv, w->attention, w->gate_up, w->activation,
                         w->rope, w->transfer, w->head_rows_in, w->logits, w->choice,
                         w->choice_top};
    void *told[] = {w->best_value, w->best_index, w->choice_host, w->choice_top_host};
    void *on_host[] = {w->row_pos, w->row_token, w->head_row, w->head_item, w->kv_item,
                       w->kv_first, w->item_row, w->sample, w->best, w->best_all, w->vocab_first,
                       w->block_leaf, w->choose_row};
    for (size_t i = 0; i < sizeof on_device / sizeof on_device[0]; i++)
        w->device->k->free(w->device, on_device[i]);
    for (size_t i = 0; i < sizeof told / sizeof told[0]; i++) {
        if (w->device->host_memory) sf_free(told[i]);
        else w->device->k->host_free(w->device, told[i]);
    }
    for (size_t i = 0; i < sizeof on_host / sizeof on_host[0]; i++) sf_free(on_host[i]);
    if (w->device->host_memory) w->device->k->free(w->device, w->logits_all);
    else sf_free(w->logits_all);
    sf_sums_give(w);
}

/* ---- opening ---- */

static sf_status open_store(struct sf_worker *w)
{
    const struct sf_share *share = w->spec.share;
    int32_t lanes = share->kv_ptr[share->layer_count];
    struct sf_store_layer *layer = calloc((size_t)share->layer_count, sizeof *layer);
    struct sf_store_lane *lane = calloc((size_t)(lanes > 0 ? lanes : 1), sizeof *lane);
    sf_status status = SF_NO_MEMORY;
    if (layer == NULL || lane == NULL) {
        status = SF_FAIL(SF_NO_MEMORY, "no memory for %d lanes", lanes);
        goto done;
    }
    for (int32_t i = 0; i < share->layer_count; i++) {
        const struct sf_layer_desc *desc = &w->desc->layer[share->layer_first + i];
        int32_t q_first = 0;
        layer[i] = (struct sf_store_layer){.k_dim = desc->k_dim,
                                           .v_dim = desc->v_dim,
                                           .window = desc->window,
                                           .scale = w->desc->attn_scale,
                                           .lane = lane + share->kv_ptr[i],
                                           .lanes = share->kv_ptr[i + 1] - share->kv_ptr[i]};
        for (int32_t j = share->kv_ptr[i]; j < share->kv_ptr[i + 1]; j++) {
            lane[j] = (struct sf_store_lane){.head_global = share->kv[j].kv_head,
                                             .q_first = q_first,
                                             .q_heads = share->kv[j].q_count,
                                             .replica = share->kv[j].replica,
                                             .replicas = share->kv[j].replicas};
            q_first += share->kv[j].q_count;
        }
    }
    struct sf_store_spec spec = {.device = w->device,
                                 .stack = w->spec.stack,
                                 .setup = w->spec.setup,
                                 .tensor = w->spec.tensor,
                                 .layer_first = share->layer_first,
                                 .layers = share->layer_count,
                                 .layer = layer,
                                 .dtype = w->spec.kv_dtype,
                                 .page_slots = w->spec.page_slots,
                                 .pool_bytes = w->spec.pool_bytes,
                                 .populate = w->spec.populate,
                                 .seqs_max = w->spec.seqs_max,
                                 .rows_max = w->ws.rows_max,
                                 .threads_beside = w->spec.threads_beside,
                                 .tap = w->spec.rows_tap};
    status = sf_store_create(&spec, &w->store);
    w->stores[0] = w->store;
    for (int32_t s = 0; status == SF_OK && s < w->spec.besides; s++) {
        spec.stack = w->spec.beside[s].stack;
        spec.setup = w->spec.beside[s].setup;
        spec.pool_bytes = w->spec.beside[s].pool_bytes;
        spec.page_slots = w->spec.beside[s].page_slots;
        spec.dtype = w->spec.beside[s].kv_dtype;
        status = sf_store_create(&spec, &w->stores[s + 1]);
    }
done:
    free(lane);
    free(layer);
    return status;
}

static sf_status open_rest(struct sf_worker *w)
{
    const struct sf_share *share = w->spec.share;
    w->load_spec = (struct sf_load_spec){.device = w->device,
                                         .model = w->spec.model,
                                         .share = share,
                                         .world = w->spec.world,
                                         .placing = &w->spec.placing,
                                         .dtype = w->spec.dtype,
                                         .fixed = w->spec.fixed,
                                         .int8 = w->spec.int8,
                                         .tile_rows = w->ws.tile_rows,
                                         .head_rows = w->ws.head_rows};
    int64_t start = sf_now_ns();
    sf_log(SF_LOG_DEBUG, "loading weights of layers %d to %d", share->layer_first,
           share->layer_first + share->layer_count - 1);
    SF_TRY(sf_weights_load(&w->load_spec, &w->weights));
    w->stats.weight_bytes = w->weights.bytes;
    sf_log(SF_LOG_DEBUG, "layers %d to %d: %.1f MiB of weights packed in %.2f s",
           share->layer_first, share->layer_first + share->layer_count - 1,
           (double)w->weights.bytes / (1 << 20), sf_seconds_since(start));
    SF_TRY(take_buffers(w));
    SF_TRY(sf_sums_take(w));
    SF_TRY(open_store(w));
    w->stats.pool_bytes = w->spec.pool_bytes;
    if (sf_worker_samples(w)) {
        SF_ASSERT(sf_sampler_bytes(w->desc->vocab) <= w->ws.choice);
        SF_TRY(sf_sampler_create(w->desc->vocab, &w->sampler));
    }
    return sf_seq_table_create(&w->seqs, w->spec.seqs_max);
}

sf_status sf_worker_open(const struct sf_worker_spec *spec, struct sf_worker **worker_out)
{
    struct sf_worker *w = calloc(1, sizeof *w);
    if (w == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a worker");
    w->spec = *spec;
    w->desc = sf_model_desc(spec->model);
    w->ws = *spec->workspace;
    struct sf_device_spec device = {.name = spec->device,
                                    .local_rank = spec->local_rank,
                                    .threads = spec->threads,
                                    .isa_max = spec->isa_max,
                                    .rows_max = w->ws.tile_rows};
    sf_status status = sf_device_open(&device, &w->device);
    if (status == SF_OK) status = open_rest(w);
    /* Sums are collective: a rank that has failed so far must not leave the others waiting. */
    status = sf_sums_open(w, status);
    if (status == SF_OK)
        status = sf_comm_allgather(spec->tensor, &spec->share->vocab_first,
                                   sizeof spec->share->vocab_first, w->vocab_first);
    if (status == SF_OK) {
        w->vocab_first[spec->share->tp_size] = w->desc->vocab;
        if (sf_comm_rank(spec->world) == 0 && spec->to_workers != NULL)
            status = sf_hub_create(w, &w->hub);
    }
    if (status != SF_OK) {
        sf_worker_close(w, status);
        return status;
    }
    *worker_out = w;
    return SF_OK;
}

void sf_worker_close(struct sf_worker *w, sf_status status)
{
    char words[1024] = "";
    if (w == NULL) return;
    if (status != SF_OK) strncpy(words, sf_error_text(), sizeof words - 1);
    if (w->sending != NULL) sf_comm_drop(w->spec.world, w->sending);   /* a step has failed */
    if (w->hub == NULL) sf_comm_set_progress(w->spec.world, NULL, NULL);
    sf_hub_destroy(w->hub);
    sf_sums_close(w, status != SF_OK);
    for (int32_t i = 0; w->store != NULL && i < w->seqs.places; i++)
        if (w->seqs.place[i].cache != NULL)
            sf_seq_close(w->stores[w->seqs.place[i].stack], w->seqs.place[i].cache,
                         NULL);
    sf_seq_table_destroy(&w->seqs);
    sf_sampler_destroy(w->sampler);
    sf_box_free(&w->step_box);
    sf_box_free(&w->tokens_box);
    sf_buffer_free(&w->taken);
    sf_buffer_free(&w->packed);
    free(w->score);
    free(w->top);
    free(w->changed_row);
    sf_buffer_free(&w->signal_packed);
    sf_kept_rows_free(&w->kept);
    for (int32_t s = 0; w->stores != NULL && s <= w->spec.besides; s++)
        if (w->stores[s] != NULL) sf_store_destroy(w->stores[s]);
    sf_free(w->stores);
    if (w->device != NULL) {
        free_buffers(w);
        sf_weights_unload(&w->load_spec, &w->weights);
        sf_device_close(w->device);
    }
    free(w);
    if (status != SF_OK) (void)SF_FAIL(status, "%s", words);
}

/* ---- running ---- */

void sf_phase(struct sf_worker *w, enum sf_phase next)
{
    int64_t now = sf_now_ns();
    if (w->phase_ns != 0) w->phase_seconds[w->phase] += (double)(now - w->phase_ns) / 1e9;
    w->phase = next;
    w->phase_ns = now;
}

void sf_phases(struct sf_worker *w, double seconds_out[SF_PHASES])
{
    sf_phase(w, w->phase);
    memcpy(seconds_out, w->phase_seconds, sizeof w->phase_seconds);
    struct sf_store_seconds store = sf_store_seconds(w->store);
    seconds_out[SF_PHASE_EDIT] = store.edit;
    seconds_out[SF_PHASE_STATISTICS] = store.watch;
    seconds_out[SF_PHASE_ATTENTION] -= store.edit + store.watch;
    if (seconds_out[SF_PHASE_ATTENTION] < 0) seconds_out[SF_PHASE_ATTENTION] = 0;
}

/* What the step took, and the wait before it, counts by itself if all of its rows decode. */
static void note_decode(struct sf_worker *w, const struct sf_wire_step *step,
                        const double before[SF_PHASES],
                        const struct sf_store_seconds *store_before)
{
    double after[SF_PHASES];
    for (int32_t i = 0; i < step->items; i++)
        if (step->item[i].token_first >= 0) return;
    if (step->items == 0) return;
    struct sf_store_seconds store = sf_store_seconds(w->store);
    w->decode_factors += store.factor - store_before->factor;
    w->decode_factor_wait += store.factor_wait - store_before->factor_wait;
    sf_phases(w, after);
    for (int i = 0; i < SF_PHASES; i++)
        if (after[i] > before[i]) w->decode_seconds[i] += after[i] - before[i];
    w->decode_steps++;
}

static sf_status next_step(struct sf_worker *w, struct sf_wire_step *step)
{
    int64_t start = sf_now_ns();
    sf_phase(w, SF_PHASE_WAIT);
    if (w->hub != NULL) SF_TRY(sf_hub_next(w->hub, &w->taken));
    else SF_TRY(sf_comm_take(w->spec.world, 0, SF_TAG_STEP, 2, &w->taken, NULL));
    SF_TRY(sf_wire_unpack_step(w->taken.bytes, w->taken.count, &w->step_box, step));
    w->stats.seconds_wait += sf_seconds_since(start);
    sf_phase(w, SF_PHASE_OTHER);
    return SF_OK;
}

/* Signals are looked for in every wait; on rank 0 the hub does it. */
static void progress(void *arg)
{
    struct sf_worker *w = arg;
    if (sf_report_signals(w) != SF_OK)
        sf_log(SF_LOG_WARN, "a signal could not be passed on: %s", sf_error_text());
}

static sf_status run_steps(struct sf_worker *w)
{
    if (w->hub == NULL) sf_comm_set_progress(w->spec.world, progress, w);
    for (;;) {
        struct sf_wire_step step;
        double before[SF_PHASES];
        struct sf_store_seconds store = sf_store_seconds(w->store);
        sf_phases(w, before);
        SF_TRY(next_step(w, &step));
        if (step.stop) break;
        SF_TRY(sf_worker_step(w, &step));
        note_decode(w, &step, before, &store);
    }
    sf_log(SF_LOG_DEBUG, "%.3f s in steps, %.3f s of waiting for the next one",
           w->stats.seconds_step, w->stats.seconds_wait);
    if (w->hub != NULL) SF_TRY(sf_hub_finish(w->hub));
    return sf_pipe_drain(w);
}

sf_status sf_worker_run(struct sf_worker *w)
{
    sf_status status = run_steps(w);
    if (status == SF_OK || status == SF_LOST || sf_comm_rank(w->spec.world) == 0) return status;
    /* Rank 0 ends the job; this rank only says what happened. */
    char words[1024];
    strncpy(words, sf_error_text(), sizeof words - 1);
    words[sizeof words - 1] = '\0';
    sf_report_failure(w, status, words);
    return SF_FAIL(status, "%s", words);
}

void sf_worker_stats(const struct sf_worker *w, struct sf_worker_stats *out)
{
    *out = w->stats;
    out->bytes_sent = sf_comm_bytes_sent(w->spec.world) + sf_comm_bytes_sent(w->spec.tensor);
    if (w->pipe_link != NULL) out->bytes_sent += sf_link_bytes_sent(w->pipe_link);
    if (w->sum_link != NULL && strcmp(sf_link_kind(w->sum_link), "staged") != 0)
        out->bytes_sent += sf_link_bytes_sent(w->sum_link);     /* else the group's, above */
}

const struct sf_store *sf_worker_store(const struct sf_worker *w)
{
    return w->store;
}
