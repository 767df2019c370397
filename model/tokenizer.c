/* model/tokenizer.c: byte-level BPE from the tables of a model file.
 *
 *   text -> cut at special tokens -> split.c: words -> memo.c: known ones -> ids
 *                                                   -> bpe.c: merges ---------^
 *
 * Vocabularies of this kind spell bytes as printable characters: 33-126, 161-172 and 174-255 stand
 * for themselves, the other 68 bytes, in increasing order, are U+0100, U+0101, ...  (space is
 * U+0120).  That spelling is undone once, when the tables are made; from then on a token is the
 * bytes that it stands for.  Control and user-defined tokens are spelled as they are. */
#include "model/tokenizer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/memory.h"
#include "model/model_impl.h"
#include "model/tokenizer_impl.h"

enum { TYPE_NORMAL = 1, TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER = 4, TYPE_UNUSED = 5,
       TYPE_BYTE = 6, MERGES_MAX = 1 << 24, TEXT_BYTES_MAX = 1 << 28, SCRATCH_KEPT = 1 << 14 };

_Static_assert(sizeof((struct sf_tokenizer *)0)->eos == sizeof((struct sf_model_desc *)0)->eos,
               "all eos ids of a description fit");

static int is_control(uint8_t type) { return type == TYPE_CONTROL || type == TYPE_UNKNOWN; }

/* ---- making the tables --------------------------------------------------------------------- */

struct tables {                         /* what the file says, checked for type */
    const struct sf_file *file;
    const struct sf_meta *tokens, *types, *merges;
    struct sf_text pre, jinja;
    int16_t byte_of[512];               /* code point -> byte, -1 if it stands for none */
};

static sf_status find_array(const struct sf_file *file, const char *key, enum sf_meta_type element,
                            uint64_t count_max, const struct sf_meta **out)
{
    const struct sf_meta *meta = sf_file_meta(file, key);
    *out = meta;
    if (meta == NULL) return SF_OK;
    if (meta->type != SF_META_ARRAY || meta->element != element)
        return SF_FAIL(SF_FORMAT, "%s: key '%s' is no array of the right type", file->path, key);
    if (meta->count > count_max)
        return SF_FAIL(SF_FORMAT, "%s: key '%s' has %" PRIu64 " elements, at most %" PRIu64
                       " make sense", file->path, key, meta->count, count_max);
    return SF_OK;
}

static sf_status find_tables(const struct sf_model *model, struct tables *t)
{
    const struct sf_file *file = t->file = model->file;
    uint64_t vocab = (uint64_t)model->desc.vocab;
    SF_TRY(find_array(file, "tokenizer.ggml.tokens", SF_META_STRING, vocab, &t->tokens));
    SF_TRY(find_array(file, "tokenizer.ggml.token_type", SF_META_I32, vocab, &t->types));
    SF_TRY(find_array(file, "tokenizer.ggml.merges", SF_META_STRING, MERGES_MAX, &t->merges));
    if (t->tokens == NULL || t->tokens->count == 0)
        return SF_FAIL(SF_FORMAT, "%s: a tokenizer without tokens", file->path);
    if (t->types != NULL && t->types->count != t->tokens->count)
        return SF_FAIL(SF_FORMAT, "%s: %" PRIu64 " tokens and %" PRIu64 " token types",
                       file->path, t->tokens->count, t->types->count);
    if (t->merges == NULL)
        return SF_FAIL(SF_FORMAT, "%s: a BPE tokenizer without merges", file->path);
    SF_TRY(sf_file_text(file, &(struct sf_meta_want){ "tokenizer.ggml.pre", 1, 0, 0, 0 },
                        &t->pre));
    SF_TRY(sf_file_text(file, &(struct sf_meta_want){ "tokenizer.chat_template", 0, 0, 0, 0 },
                        &t->jinja));
    for (int i = 0; i < 512; i++) t->byte_of[i] = -1;
    int shifted = 256;
    for (int b = 0; b < 256; b++) {
        int itself = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        t->byte_of[itself ? b : shifted++] = (int16_t)b;
    }
    return SF_OK;
}

/* Undoes the spelling; `out` has room for text.bytes.  What spells no byte is kept as it is. */
static struct sf_text spelled_bytes(const struct tables *t, struct sf_text text, char *out)
{
    size_t written = 0;
    for (size_t at = 0; at < text.bytes;) {
        utf8proc_int32_t code_point;
        utf8proc_ssize_t taken = utf8proc_iterate((const utf8proc_uint8_t *)text.at + at,
                                                  (utf8proc_ssize_t)(text.bytes - at),
                                                  &code_point);
        size_t length = taken > 0 ? (size_t)taken : 1;
        if (taken > 0 && code_point < 512 && t->byte_of[code_point] >= 0) {
            out[written++] = (char)t->byte_of[code_point];
        } else {
            memcpy(out + written, text.at + at, length);
            written += length;
        }
        at += length;
    }
    return (struct sf_text){ out, written };
}

static sf_status make_texts(struct sf_tokenizer *tok, const struct tables *t)
{
    tok->vocab = (int32_t)t->tokens->count;
    tok->text = calloc((size_t)tok->vocab, sizeof *tok->text);
    tok->type = calloc((size_t)tok->vocab, 1);
    tok->pool = malloc((size_t)t->tokens->bytes);
    if (tok->text == NULL || tok->type == NULL || tok->pool == NULL)
        return SF_FAIL(SF_NO_MEMORY, "%s: no memory for %d tokens", t->file->path, tok->vocab);
    const unsigned char *cursor = t->tokens->data;
    char *pool = tok->pool;
    for (int32_t i = 0; i < tok->vocab; i++) {
        struct sf_text text = sf_meta_next_text(&cursor);
        uint32_t type = t->types != NULL ? sf_load_u32(t->types->data + 4 * (size_t)i)
                                         : TYPE_NORMAL;
        if (type < TYPE_NORMAL || type > TYPE_BYTE)
            return SF_FAIL(SF_FORMAT, "%s: token %d is of unknown type %" PRIu32, t->file->path, i,
                           type);
        tok->type[i] = (uint8_t)type;
        if (is_control(tok->type[i]) || type == TYPE_USER) {
            memcpy(pool, text.at, text.bytes);
            tok->text[i] = (struct sf_text){ pool, text.bytes };
        } else {
            tok->text[i] = spelled_bytes(t, text, pool);
        }
        pool += tok->text[i].bytes;
    }
    return SF_OK;
}

/* "left right", cut at the first space that is not the first byte. */
static sf_status make_bpe(struct sf_tokenizer *tok, const struct tables *t)
{
    int32_t pairs = (int32_t)t->merges->count;
    struct sf_bpe_pair *pair = calloc((size_t)pairs + 1, sizeof *pair);
    struct sf_text *symbol = calloc((size_t)tok->vocab, sizeof *symbol);
    char *pool = malloc((size_t)t->merges->bytes + 1), *at = pool;
    sf_status status = SF_OK;
    if (pair == NULL || symbol == NULL || pool == NULL)
        status = SF_FAIL(SF_NO_MEMORY, "%s: no memory for %d merges", t->file->path, pairs);
    const unsigned char *cursor = t->merges->data;
    for (int32_t i = 0; status == SF_OK && i < pairs; i++) {
        struct sf_text text = sf_meta_next_text(&cursor);
        const char *space = text.bytes < 2 ? NULL : memchr(text.at + 1, ' ', text.bytes - 1);
        if (space == NULL || space + 1 == text.at + text.bytes) {
            status = SF_FAIL(SF_FORMAT, "%s: merge %d is no pair", t->file->path, i);
            break;
        }
        size_t left = (size_t)(space - text.at);
        pair[i].left = spelled_bytes(t, (struct sf_text){ text.at, left }, at);
        at += pair[i].left.bytes;
        pair[i].right = spelled_bytes(t, (struct sf_text){ space + 1, text.bytes - left - 1 }, at);
        at += pair[i].right.bytes;
    }
    if (status == SF_OK) {
        for (int32_t i = 0; i < tok->vocab; i++)
            if (!is_control(tok->type[i]) && tok->text[i].bytes > 0) symbol[i] = tok->text[i];
        status = sf_bpe_create(symbol, tok->vocab, pair, pairs, &tok->bpe);
    }
    free(pool);
    free(pair);
    if (status == SF_OK) tok->symbol = symbol;
    else free(symbol);
    return status;
}

/* By text, the shorter of two that begin alike first, then by id. */
static int special_order(const void *a, const void *b)
{
    const struct sf_special *x = a, *y = b;
    size_t common = x->text.bytes < y->text.bytes ? x->text.bytes : y->text.bytes;
    int order = memcmp(x->text.at, y->text.at, common);
    if (order != 0) return order;
    if (x->text.bytes != y->text.bytes) return x->text.bytes < y->text.bytes ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

/* Of tokens with one text only the first can be met, and the first of those always cut out. */
static void drop_repeated(struct sf_tokenizer *tok)
{
    int32_t kept = 0, run = 0;          /* run: where the kept ones of this text begin */
    for (int32_t i = 0; i < tok->specials; i++) {
        const struct sf_special *s = &tok->special[i];
        int always = 0, same = kept > run && tok->special[run].text.bytes == s->text.bytes &&
                   memcmp(tok->special[run].text.at, s->text.at, s->text.bytes) == 0;
        if (!same) run = kept;
        for (int32_t k = run; k < kept; k++) always |= tok->special[k].always;
        if (!same || (s->always && !always)) tok->special[kept++] = *s;
    }
    tok->specials = kept;
}

static sf_status make_specials(struct sf_tokenizer *tok)
{
    for (int pass = 0; pass < 2; pass++) {              /* count, then fill */
        int32_t count = 0;
        for (int32_t i = 0; i < tok->vocab; i++) {
            int user = tok->type[i] == TYPE_USER;
            if (tok->text[i].bytes == 0 || (!user && !is_control(tok->type[i]))) continue;
            if (pass == 1)
                tok->special[count] = (struct sf_special){ tok->text[i], i, (uint8_t)user };
            count++;
        }
        tok->specials = count;
        if (pass == 1) break;
        tok->special = calloc((size_t)count + 1, sizeof *tok->special);
        if (tok->special == NULL)
            return SF_FAIL(SF_NO_MEMORY, "no memory for %d special tokens", count);
    }
    qsort(tok->special, (size_t)tok->specials, sizeof *tok->special, special_order);
    drop_repeated(tok);
    int32_t at = 0;
    for (int b = 0; b < 256; b++) {
        tok->special_first[b] = at;
        while (at < tok->specials && (unsigned char)tok->special[at].text.at[0] == b) at++;
    }
    tok->special_first[256] = at;
    return SF_OK;
}

static sf_status make_shelf(struct sf_tokenizer *tok)
{
    struct sf_encode_memory *memory = calloc(1, sizeof *memory);
    tok->shelf = calloc(1, sizeof *tok->shelf);
    if (memory == NULL || tok->shelf == NULL) {
        free(memory);
        return SF_FAIL(SF_NO_MEMORY, "no memory for a tokenizer");
    }
    atomic_init(&tok->shelf->memory, memory);
    return sf_memo_create(&memory->memo);
}

static sf_status make_all(struct sf_tokenizer *tok, const struct sf_model *model)
{
    struct tables tables = { 0 };
    SF_TRY(find_tables(model, &tables));
    SF_TRY(sf_split_create(tables.pre.at, tables.pre.bytes, &tok->split));
    snprintf(tok->kind, sizeof tok->kind, "gpt2/%s", sf_split_name(tok->split));
    SF_TRY(make_texts(tok, &tables));
    SF_TRY(make_bpe(tok, &tables));
    SF_TRY(make_specials(tok));
    SF_TRY(make_shelf(tok));
    const struct sf_model_desc *desc = &model->desc;
    int64_t add_bos = sf_split_adds_bos(tok->split);
    SF_TRY(sf_file_int(model->file,
                       &(struct sf_meta_want){ "tokenizer.ggml.add_bos_token", 0, 0, 1, 0 },
                       &add_bos));
    tok->bos = desc->bos;
    tok->add_bos = add_bos != 0 && tok->bos >= 0;
    tok->eos_count = desc->eos_count;
    memcpy(tok->eos, desc->eos, sizeof tok->eos);
    return sf_chat_detect(tok, tables.jinja);
}

sf_status sf_tokenizer_create(const struct sf_model *model, struct sf_tokenizer **out)
{
    struct sf_text kind = { NULL, 0 };
    SF_TRY(sf_file_text(model->file, &(struct sf_meta_want){ "tokenizer.ggml.model", 0, 0, 0, 0 },
                        &kind));
    if (kind.at == NULL) {
        *out = NULL;
        return SF_OK;
    }
    if (kind.bytes != 4 || memcmp(kind.at, "gpt2", 4) != 0)
        return SF_FAIL(SF_UNSUPPORTED, "%s: this kind of tokenizer (tokenizer.ggml.model) is not "
                       "built; gpt2 (byte-level BPE) is", model->file->path);
    struct sf_tokenizer *tok = calloc(1, sizeof *tok);
    if (tok == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a tokenizer");
    sf_status status = make_all(tok, model);
    if (status != SF_OK) {
        sf_tokenizer_destroy(tok);
        return status;
    }
    *out = tok;
    return SF_OK;
}

static void free_memory(struct sf_encode_memory *memory)
{
    if (memory == NULL) return;
    sf_bpe_scratch_free(&memory->scratch);
    sf_memo_destroy(memory->memo);
    free(memory);
}

void sf_tokenizer_destroy(struct sf_tokenizer *tok)
{
    if (tok == NULL) return;
    free_memory(tok->shelf != NULL ? atomic_load(&tok->shelf->memory) : NULL);
    free(tok->shelf);
    free(tok->default_system);
    free(tok->special);
    sf_bpe_destroy(tok->bpe);
    free(tok->symbol);
    sf_split_destroy(tok->split);
    free(tok->pool);
    free(tok->type);
    free(tok->text);
    free(tok);
}

/* ---- encoding ------------------------------------------------------------------------------ */

struct encoder {
    const struct sf_tokenizer *tok;
    struct sf_tokens *tokens;
    struct sf_bpe_scratch *scratch;
    struct sf_memo *memo;               /* NULL: no piece is known */
};

static sf_status merge_piece(const struct encoder *e, const char *at, size_t bytes)
{
    if (bytes > 1 && sf_split_whole_pieces(e->tok->split)) {
        int32_t id = sf_bpe_find(e->tok->bpe, at, bytes);
        if (id >= 0) return sf_tokens_push(e->tokens, id);
    }
    return sf_bpe_encode(e->tok->bpe, at, bytes, e->scratch, e->tokens);
}

static sf_status encode_piece(void *context, const char *at, size_t bytes)
{
    const struct encoder *e = context;
    struct sf_tokens *tokens = e->tokens;
    size_t before = tokens->count;
    if (bytes == 1 || e->memo == NULL) return merge_piece(e, at, bytes);
    if (tokens->capacity - before < SF_MEMO_IDS) {
        void *items = tokens->id;
        SF_TRY(sf_grow(&items, &tokens->capacity, before + SF_MEMO_IDS, sizeof *tokens->id));
        tokens->id = items;
    }
    int32_t known = sf_memo_find(e->memo, at, bytes, tokens->id + before);
    if (known < 0) {
        SF_TRY(merge_piece(e, at, bytes));
        sf_memo_put(e->memo, at, bytes, tokens->id + before, tokens->count - before);
        return SF_OK;
    }
    tokens->count = before + (size_t)known;
    return SF_OK;
}

/* The first special token of [first, end) whose byte `k` is not below `byte`. */
static int32_t special_bound(const struct sf_tokenizer *tok, int32_t first, int32_t end, size_t k,
                             int byte)
{
    while (first < end) {
        int32_t middle = first + (end - first) / 2;
        if ((unsigned char)tok->special[middle].text.at[k] < byte) first = middle + 1;
        else end = middle;
    }
    return first;
}

/* The longest special token that the text begins with, or NULL.  Those that share its first k bytes
 * are one run of the list, the one that is no longer than that in front; the run shrinks with each
 * byte, so that even a thousand tokens with one beginning cost little. */
static const struct sf_special *special_here(const struct sf_tokenizer *tok, const char *text,
                                             size_t bytes, int parse_special)
{
    unsigned char lead = (unsigned char)text[0];
    int32_t first = tok->special_first[lead], end = tok->special_first[lead + 1];
    const struct sf_special *found = NULL;
    for (size_t k = 1; first < end; k++) {
        for (; first < end && tok->special[first].text.bytes == k; first++) {
            const struct sf_special *s = &tok->special[first];
            if ((parse_special || s->always) && (found == NULL || found->text.bytes < k)) found = s;
        }
        if (k == bytes) break;
        unsigned char byte = (unsigned char)text[k];
        first = special_bound(tok, first, end, k, byte);
        end = special_bound(tok, first, end, k, byte + 1);
    }
    return found;
}

static sf_status encode_text(struct encoder *e, const char *text, size_t bytes, int parse_special)
{
    const struct sf_tokenizer *tok = e->tok;
    size_t plain_first = 0, at = 0;
    while (at < bytes) {
        int lead = (unsigned char)text[at];
        const struct sf_special *s = NULL;
        if (tok->special_first[lead] < tok->special_first[lead + 1])
            s = special_here(tok, text + at, bytes - at, parse_special);
        if (s == NULL) {
            at++;
            continue;
        }
        SF_TRY(sf_split_text(tok->split, text + plain_first, at - plain_first, encode_piece, e));
        SF_TRY(sf_tokens_push(e->tokens, s->id));
        at += s->text.bytes;
        plain_first = at;
    }
    return sf_split_text(tok->split, text + plain_first, bytes - plain_first, encode_piece, e);
}

sf_status sf_tokenizer_encode(const struct sf_tokenizer *tok, const char *text, size_t bytes,
                              int parse_special, int add_bos, struct sf_tokens *tokens)
{
    if (bytes > TEXT_BYTES_MAX)
        return SF_FAIL(SF_INVALID, "a text of %zu bytes (at most %d)", bytes, TEXT_BYTES_MAX);
    size_t count_before = tokens->count;
    struct sf_encode_memory own = { 0 }, *memory = atomic_exchange(&tok->shelf->memory, NULL);
    if (memory == NULL) memory = &own;
    struct encoder e = { tok, tokens, &memory->scratch, memory->memo };
    sf_status status = add_bos && tok->add_bos ? sf_tokens_push(tokens, tok->bos) : SF_OK;
    if (status == SF_OK) status = encode_text(&e, text, bytes, parse_special);
    /* A piece of a megabyte is rare, and takes 32 of scratch. */
    if (memory == &own || memory->scratch.links_capacity > SCRATCH_KEPT)
        sf_bpe_scratch_free(&memory->scratch);
    if (memory != &own) atomic_store(&tok->shelf->memory, memory);
    if (status != SF_OK) tokens->count = count_before;
    return status;
}

/* ---- looking up ---------------------------------------------------------------------------- */

int32_t sf_tokenizer_vocab(const struct sf_tokenizer *tok) { return tok->vocab; }
const char *sf_tokenizer_kind(const struct sf_tokenizer *tok) { return tok->kind; }

/* A model may have more rows than its tokenizer has tokens: those have no bytes. */
const char *sf_tokenizer_bytes(const struct sf_tokenizer *tok, int32_t id, int special,
                               size_t *bytes_out)
{
    *bytes_out = 0;
    if (id < 0 || id >= tok->vocab) return "";
    if (is_control(tok->type[id]) && !special) return "";
    *bytes_out = tok->text[id].bytes;
    return tok->text[id].at;
}

int sf_tokenizer_is_eos(const struct sf_tokenizer *tok, int32_t id)
{
    for (int32_t i = 0; i < tok->eos_count; i++)
        if (tok->eos[i] == id) return 1;
    return 0;
}

int sf_tokenizer_is_ordinary(const struct sf_tokenizer *tok, int32_t id)
{
    size_t bytes;
    sf_tokenizer_bytes(tok, id, 0, &bytes);
    return bytes > 0 && !sf_tokenizer_is_eos(tok, id);
}

int32_t sf_tokenizer_special(const struct sf_tokenizer *tok, const char *text, size_t bytes)
{
    if (bytes == 0) return -1;
    const struct sf_special *s = special_here(tok, text, bytes, 1);
    return s != NULL && s->text.bytes == bytes ? s->id : -1;
}
