/* tests/unit/coordinator/journal.c: frames of the journal, written and read back.
 *
 * A journal with every kind of entry is read back field by field; then cut at every byte, with
 * every bit flipped, and with frames whose hash is right and whose fields are not: always the
 * entries before the damage, exactly, and nothing behind it.  Lengths that the file does not hold
 * and random bytes end the reading.  A disk that is full (played by a limit on the size of files,
 * at every size) leaves whole frames, and the next one goes where it belongs.  Warm writing
 * allocates nothing: the linker puts counters before the allocator. */
#include "coordinator/journal.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/rng.h"
#include "tests/check.h"

enum { FILE_BYTES_MAX = 1 << 16, HEADER_FRAME = 25 };

static char folder[64], path[96];

/* ---- counters before the allocator ---- */

static int allocations;
void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *block, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *block, size_t bytes);

void *__wrap_malloc(size_t bytes)
{
    allocations++;
    return __real_malloc(bytes);
}
void *__wrap_calloc(size_t count, size_t bytes)
{
    allocations++;
    return __real_calloc(count, bytes);
}
void *__wrap_realloc(void *block, size_t bytes)
{
    allocations++;
    return __real_realloc(block, bytes);
}

/* ---- files ---- */

static void make_folder(void)
{
    sf_log_setup(SF_LOG_ERROR, 0);
    snprintf(folder, sizeof folder, "%s/sheaf-journal-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (mkdtemp(folder) == NULL) abort();
    snprintf(path, sizeof path, "%s/journal", folder);
}

static void drop_folder(void)
{
    unlink(path);
    SF_CHECK_INT(rmdir(folder), 0);
}

static size_t load(unsigned char *bytes)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) abort();
    size_t count = fread(bytes, 1, FILE_BYTES_MAX, file);
    fclose(file);
    return count;
}

static void store(const unsigned char *bytes, size_t count)
{
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(bytes, 1, count, file) != count || fclose(file) != 0) abort();
}

/* ---- a journal of every kind of entry ---- */

static const int32_t some[] = {0, 1, 127, 128, 16383, 16384, 49151, INT32_MAX};
static const char extra[] = "logprobs\0of\xff these";
static const struct sf_journal_entry wanted[] = {
    {.kind = SF_JOURNAL_SYNCED, .synced_bytes = 0},
    {.kind = SF_JOURNAL_TOKENS, .tokens = {.line = 1, .count = 3, .token = some}},
    {.kind = SF_JOURNAL_FINISHED,
     .finished = {.line = 1, .offset = 0, .bytes = 1, .digest = 7, .sum = {1, 2, 3}}},
    {.kind = SF_JOURNAL_TOKENS,
     .tokens = {.line = SF_JOURNAL_LINE_MAX, .choice = 127, .first = INT32_MAX - 8, .count = 8,
                .token = some, .extra = extra, .extra_bytes = sizeof extra}},
    {.kind = SF_JOURNAL_FINISHED,
     .finished = {.line = SF_JOURNAL_LINE_MAX, .offset = INT64_MAX / 2,
                  .bytes = SF_JOURNAL_LINE_BYTES_MAX, .digest = UINT64_MAX, .error = 1,
                  .sum = {0, 127, 128, INT64_MAX, INT64_MAX - 1, 1 << 14, 0, INT64_MAX}}},
    {.kind = SF_JOURNAL_TOKENS, .tokens = {.line = 3, .first = 5, .extra = extra,
                                           .extra_bytes = 1}},
    {.kind = SF_JOURNAL_SYNCED, .synced_bytes = INT64_MAX}};
enum { WANTED = sizeof wanted / sizeof wanted[0] };

static sf_status write_entry(struct sf_journal *journal, const struct sf_journal_entry *entry)
{
    switch (entry->kind) {
    case SF_JOURNAL_FINISHED: return sf_journal_finished(journal, &entry->finished);
    case SF_JOURNAL_TOKENS: return sf_journal_tokens(journal, &entry->tokens);
    case SF_JOURNAL_SYNCED: return sf_journal_sync(journal, STDERR_FILENO, entry->synced_bytes);
    case SF_JOURNAL_HEADER:
    case SF_JOURNAL_END: break;
    }
    abort();
}

/* Writes them all; *ends: where each frame ends. */
static size_t write_all(unsigned char *bytes, int64_t *ends)
{
    struct sf_journal *journal = NULL;
    struct stat info;
    unlink(path);
    SF_CHECK_OK(sf_journal_create(path, &journal));
    for (int i = 0; i < WANTED; i++) {
        SF_CHECK_OK(write_entry(journal, &wanted[i]));
        if (stat(path, &info) != 0) abort();
        ends[i] = info.st_size;
    }
    sf_journal_close(journal);
    return load(bytes);
}

static int equal(const struct sf_journal_entry *a, const struct sf_journal_entry *b)
{
    if (a->kind != b->kind) return 0;
    const struct sf_journal_finished *f = &a->finished, *g = &b->finished;
    const struct sf_journal_tokens *t = &a->tokens, *u = &b->tokens;
    switch (a->kind) {
    case SF_JOURNAL_SYNCED: return a->synced_bytes == b->synced_bytes;
    case SF_JOURNAL_FINISHED:
        return f->line == g->line && f->offset == g->offset && f->bytes == g->bytes &&
               f->digest == g->digest && f->error == g->error &&
               memcmp(f->sum, g->sum, sizeof f->sum) == 0;
    case SF_JOURNAL_TOKENS:
        return t->line == u->line && t->choice == u->choice && t->first == u->first &&
               t->count == u->count && t->extra_bytes == u->extra_bytes &&
               (t->count == 0 || memcmp(t->token, u->token, (size_t)t->count * 4) == 0) &&
               (t->extra_bytes == 0 || memcmp(t->extra, u->extra, t->extra_bytes) == 0);
    case SF_JOURNAL_HEADER:
    case SF_JOURNAL_END: break;
    }
    return 0;
}

/* Reads what is there: so many of the wanted entries, then the end at `good` with the rest torn. */
static void check_file(size_t count, int entries, int64_t good)
{
    struct sf_journal_reader *reader;
    struct sf_journal_entry entry;
    SF_MUST(sf_journal_reader_open(path, &reader));
    for (int i = 0; i < entries; i++) {
        SF_CHECK_OK(sf_journal_reader_next(reader, &entry));
        SF_CHECK(equal(&entry, &wanted[i]));
    }
    for (int again = 0; again < 2; again++) {
        SF_CHECK_OK(sf_journal_reader_next(reader, &entry));
        SF_CHECK_INT(entry.kind, SF_JOURNAL_END);
        SF_CHECK_INT(entry.offset, good);
        SF_CHECK_INT(entry.torn_bytes, (int64_t)count - good);
    }
    sf_journal_reader_close(reader);
}

static void round_trip(void)
{
    static unsigned char bytes[FILE_BYTES_MAX];
    int64_t ends[WANTED];
    make_folder();
    size_t count = write_all(bytes, ends);
    SF_CHECK_INT(ends[WANTED - 1], count);
    check_file(count, WANTED, (int64_t)count);
    /* The picture in the header, byte for byte. */
    SF_CHECK(memcmp(bytes, "\x0c\0\0\0\x01sheafjnl\x01\0\0\0", 17) == 0);
    SF_CHECK(memcmp(bytes + HEADER_FRAME, "\x08\0\0\0\x04\0\0\0\0\0\0\0\0", 13) == 0);
    drop_folder();
}

static void never_overwrites(void)
{
    struct sf_journal *journal = NULL;
    struct sf_journal_reader *reader = NULL;
    unsigned char bytes[FILE_BYTES_MAX];
    make_folder();
    store((const unsigned char *)"precious", 8);
    SF_CHECK_FAILS(sf_journal_create(path, &journal), SF_IO);
    SF_CHECK(strstr(sf_error_text(), path) != NULL);
    SF_CHECK_INT(load(bytes), 8);
    SF_CHECK_FAILS(sf_journal_reader_open(path, &reader), SF_FORMAT);
    unlink(path);
    SF_CHECK_FAILS(sf_journal_reader_open(path, &reader), SF_IO);
    SF_CHECK_FAILS(sf_journal_reader_open(folder, &reader), SF_FORMAT);
    SF_CHECK(journal == NULL && reader == NULL);
    drop_folder();
}

/* ---- damage ---- */

static int whole_before(const int64_t *ends, size_t count)
{
    int entries = 0;
    while (entries < WANTED && ends[entries] <= (int64_t)count) entries++;
    return entries;
}

static void cut_anywhere(void)
{
    static unsigned char bytes[FILE_BYTES_MAX];
    struct sf_journal_reader *reader;
    int64_t ends[WANTED];
    make_folder();
    size_t count = write_all(bytes, ends);
    for (size_t cut = 0; cut <= count; cut++) {
        store(bytes, cut);
        int entries = whole_before(ends, cut);
        if (cut < HEADER_FRAME) SF_CHECK_FAILS(sf_journal_reader_open(path, &reader), SF_FORMAT);
        else check_file(cut, entries, entries == 0 ? HEADER_FRAME : ends[entries - 1]);
    }
    drop_folder();
}

static void flipped_bits(void)
{
    static unsigned char bytes[FILE_BYTES_MAX];
    struct sf_journal_reader *reader;
    int64_t ends[WANTED];
    make_folder();
    size_t count = write_all(bytes, ends);
    for (size_t bit = 0; bit < 8 * count; bit++) {
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
        store(bytes, count);
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
        int entries = whole_before(ends, bit / 8);
        if (bit < 8 * HEADER_FRAME)
            SF_CHECK_FAILS(sf_journal_reader_open(path, &reader), SF_FORMAT);
        else check_file(count, entries, entries == 0 ? HEADER_FRAME : ends[entries - 1]);
    }
    drop_folder();
}

/* Appends a frame with the right hash to `bytes`. */
static size_t add_frame(unsigned char *bytes, size_t count, int kind, const void *payload,
                        size_t payload_bytes)
{
    unsigned char *frame = bytes + count;
    for (int i = 0; i < 4; i++) frame[i] = (unsigned char)(payload_bytes >> 8 * i);
    frame[4] = (unsigned char)kind;
    memcpy(frame + 5, payload, payload_bytes);
    uint64_t hash = sf_hash64(frame + 4, payload_bytes + 1);
    frame += payload_bytes + 5;
    for (int i = 0; i < 8; i++) frame[i] = (unsigned char)(hash >> 8 * i);
    return count + payload_bytes + 13;
}

#define LINE_1 "\1\0\0\0\0\0\0\0"
#define ZERO_8 "\0\0\0\0\0\0\0\0"
#define ONES_8 "\377\377\377\377\377\377\377\377"
#define SUMS_0 "\0\0\0\0\0\0\0\0"

/* Frames with the right hash and impossible fields. */
static void impossible_fields(void)
{
    static const struct { int kind; size_t bytes; const char *payload; } bad[] = {
#define BAD(kind, text) {kind, sizeof(text) - 1, text}
        BAD(0, ""), BAD(5, ""), BAD(255, "abc"),
        BAD(SF_JOURNAL_HEADER, "sheafjnl\1\0\0\0"),
        BAD(SF_JOURNAL_SYNCED, ""), BAD(SF_JOURNAL_SYNCED, ONES_8),
        BAD(SF_JOURNAL_SYNCED, ZERO_8 "x"),
        BAD(SF_JOURNAL_FINISHED, ZERO_8 ZERO_8 LINE_1 ZERO_8 "\0" SUMS_0),          /* line 0 */
        BAD(SF_JOURNAL_FINISHED, ONES_8 ZERO_8 LINE_1 ZERO_8 "\0" SUMS_0),          /* line -1 */
        BAD(SF_JOURNAL_FINISHED, "\1\0\0\0\x10\0\0\0" ZERO_8 LINE_1 ZERO_8 "\0" SUMS_0),
        BAD(SF_JOURNAL_FINISHED, LINE_1 ONES_8 LINE_1 ZERO_8 "\0" SUMS_0),          /* offset -1 */
        BAD(SF_JOURNAL_FINISHED, LINE_1 ZERO_8 ZERO_8 ZERO_8 "\0" SUMS_0),          /* no bytes */
        BAD(SF_JOURNAL_FINISHED, LINE_1 ZERO_8 ONES_8 ZERO_8 "\0" SUMS_0),
        BAD(SF_JOURNAL_FINISHED, LINE_1 ZERO_8 LINE_1 ZERO_8 "\2" SUMS_0),          /* error 2 */
        BAD(SF_JOURNAL_FINISHED, LINE_1 ZERO_8 LINE_1 ZERO_8 "\0" "\0\0\0\0\0\0\0"),    /* 7 sums */
        BAD(SF_JOURNAL_FINISHED, LINE_1 ZERO_8 LINE_1 ZERO_8 "\0" SUMS_0 "\0"),         /* 9 */
        BAD(SF_JOURNAL_FINISHED, LINE_1 ZERO_8 LINE_1 ZERO_8 "\0\0\0\0\0\0\0\0" ONES_8 "\377\1"),
        BAD(SF_JOURNAL_TOKENS, ZERO_8 "\0\0\0\0" "\0\0\0\0" "\0\0\0\0" "\0\0\0\0"), /* line 0 */
        BAD(SF_JOURNAL_TOKENS, LINE_1 "\377\377\377\377" "\0\0\0\0" "\0\0\0\0" "\0\0\0\0"),
        BAD(SF_JOURNAL_TOKENS, LINE_1 "\0\0\0\0" "\0\0\0\0" "\377\377\377\177" "\0\0\0\0"),
        BAD(SF_JOURNAL_TOKENS, LINE_1 "\0\0\0\0" "\377\377\377\177" "\1\0\0\0" "\5" "\0\0\0\0"),
        BAD(SF_JOURNAL_TOKENS, LINE_1 "\0\0\0\0" "\0\0\0\0" "\1\0\0\0"
                               "\200\200\200\200\10" "\0\0\0\0"),                   /* 2^31 */
        BAD(SF_JOURNAL_TOKENS, LINE_1 "\0\0\0\0" "\0\0\0\0" "\1\0\0\0"
                               "\200\200\200\200\200\0" "\0\0\0\0"),                /* 6 bytes */
        BAD(SF_JOURNAL_TOKENS, LINE_1 "\0\0\0\0" "\0\0\0\0" "\0\0\0\0" "\2\0\0\0" "x"),
        BAD(SF_JOURNAL_TOKENS, LINE_1 "\0\0\0\0" "\0\0\0\0" "\0\0\0\0" "\0\0\0\0" "x"),
        BAD(SF_JOURNAL_TOKENS, LINE_1 "\0\0\0\0" "\0\0\0\0" "\0\0\0\0" "\377\377\377\377"),
        BAD(SF_JOURNAL_TOKENS, LINE_1 "\0\0\0\0" "\0\0\0\0" "\0\0\0\0" "\0\0\0"),
#undef BAD
    };
    static unsigned char bytes[FILE_BYTES_MAX];
    int64_t ends[WANTED];
    make_folder();
    size_t count = write_all(bytes, ends);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        size_t more = add_frame(bytes, count, bad[i].kind, bad[i].payload, bad[i].bytes);
        more = add_frame(bytes, more, SF_JOURNAL_SYNCED, ZERO_8, 8);    /* good, but behind */
        store(bytes, more);
        check_file(more, WANTED, (int64_t)count);
    }
    drop_folder();
}

static void wrong_headers(void)
{
    struct sf_journal_reader *reader = NULL;
    unsigned char bytes[64];
    make_folder();
    store(bytes, add_frame(bytes, 0, SF_JOURNAL_HEADER, "sheafjnl\2\0\0\0", 12));
    SF_CHECK_FAILS(sf_journal_reader_open(path, &reader), SF_UNSUPPORTED);
    SF_CHECK(strstr(sf_error_text(), "version 2") != NULL);
    store(bytes, add_frame(bytes, 0, SF_JOURNAL_HEADER, "sheafjnl\1\0\0\0\0", 13));
    SF_CHECK_FAILS(sf_journal_reader_open(path, &reader), SF_FORMAT);
    store(bytes, add_frame(bytes, 0, SF_JOURNAL_HEADER, "sheafjnx\1\0\0\0", 12));
    SF_CHECK_FAILS(sf_journal_reader_open(path, &reader), SF_FORMAT);
    store(bytes, add_frame(bytes, 0, SF_JOURNAL_SYNCED, ZERO_8, 8));
    SF_CHECK_FAILS(sf_journal_reader_open(path, &reader), SF_FORMAT);
    drop_folder();
}

/* Lengths that nothing stands behind, also in a file that claims to be large. */
static void huge_lengths(void)
{
    static const uint32_t lengths[] = {1 << 20, SF_JOURNAL_PAYLOAD_MAX, 1u << 31, UINT32_MAX};
    static unsigned char bytes[FILE_BYTES_MAX];
    int64_t ends[WANTED];
    make_folder();
    size_t count = write_all(bytes, ends);
    for (int i = 0; i < 4; i++) {
        for (int b = 0; b < 4; b++) bytes[count + (size_t)b] = (unsigned char)(lengths[i] >> 8 * b);
        memset(bytes + count + 4, 2, 100);
        store(bytes, count + 104);
        check_file(count + 104, WANTED, (int64_t)count);
        if (truncate(path, (off_t)(count + 104 + (1 << 20))) != 0) abort();     /* all zeros */
        check_file(count + 104 + (1 << 20), WANTED, (int64_t)count);
    }
    drop_folder();
}

static void random_bytes(void)
{
    static unsigned char bytes[4096];
    make_folder();
    for (uint64_t round = 0; round < 3000; round++) {
        size_t count = add_frame(bytes, 0, SF_JOURNAL_HEADER, "sheafjnl\1\0\0\0", 12);
        size_t end = sf_rng_u64(1, round, 0) % 2 ? count : 0;
        size_t frames = sf_rng_u64(1, round, 1) % 4;
        for (size_t f = 0; f < frames && end > 0; f++) {        /* random payloads, right hashes */
            unsigned char payload[96];
            size_t length = sf_rng_u64(2, round, f) % sizeof payload;
            for (size_t i = 0; i < length; i++)
                payload[i] = sf_rng_u64(3, round, 1000 * f + i) % 4 > 0
                                 ? 0 : (unsigned char)sf_rng_u64(4, round, 1000 * f + i);
            end = add_frame(bytes, end, (int)(2 + sf_rng_u64(5, round, f) % 3), payload, length);
        }
        size_t more = sf_rng_u64(6, round, 0) % 200;
        for (size_t i = 0; i < more; i++)
            bytes[end + i] = (unsigned char)sf_rng_u64(7, round, i);
        store(bytes, end + more);
        struct sf_journal_reader *reader;
        struct sf_journal_entry entry = {.kind = SF_JOURNAL_SYNCED};
        sf_status status = sf_journal_reader_open(path, &reader);
        SF_CHECK(end > 0 ? status == SF_OK : status == SF_FORMAT);
        if (status != SF_OK) continue;
        while (entry.kind != SF_JOURNAL_END) {
            if (sf_journal_reader_next(reader, &entry) != SF_OK) abort();
            if (entry.kind != SF_JOURNAL_TOKENS) continue;
            for (int32_t i = 0; i < entry.tokens.count; i++)
                if (entry.tokens.token[i] < 0) abort();
        }
        sf_journal_reader_close(reader);
    }
    drop_folder();
}

/* ---- a full disk ---- */

static void limit_files(rlim_t bytes)
{
    static struct rlimit old;
    if (bytes == 0) setrlimit(RLIMIT_FSIZE, &old);
    else {
        getrlimit(RLIMIT_FSIZE, &old);
        struct rlimit tight = {.rlim_cur = bytes, .rlim_max = old.rlim_max};
        setrlimit(RLIMIT_FSIZE, &tight);
    }
}

static void full_disk(void)
{
    static unsigned char bytes[FILE_BYTES_MAX];
    int64_t ends[WANTED];
    make_folder();
    size_t count = write_all(bytes, ends);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    for (size_t limit = 1; limit < count; limit++) {
        struct sf_journal *journal = NULL;
        struct stat info;
        unlink(path);
        limit_files(limit);
        sf_status status = sf_journal_create(path, &journal);
        int done = 0;
        while (status == SF_OK && (status = write_entry(journal, &wanted[done])) == SF_OK) done++;
        limit_files(0);
        SF_CHECK_INT(status, SF_IO);
        SF_CHECK(strstr(sf_error_text(), path) != NULL &&
                 strstr(sf_error_text(), "File too large") != NULL);
        if (journal == NULL) {
            SF_CHECK(limit < HEADER_FRAME && stat(path, &info) != 0);
            continue;
        }
        SF_CHECK_INT(done, whole_before(ends, limit));
        int64_t good = done == 0 ? HEADER_FRAME : ends[done - 1];
        SF_CHECK(stat(path, &info) == 0 && info.st_size == good);
        check_file((size_t)good, done, good);
        for (; done < WANTED; done++) SF_CHECK_OK(write_entry(journal, &wanted[done]));
        check_file(count, WANTED, (int64_t)count);
        sf_journal_close(journal);
    }
    signal(SIGXFSZ, handler);
    drop_folder();
}

/* ---- the rest ---- */

static void warm_writing(void)
{
    struct sf_journal *journal;
    make_folder();
    SF_MUST(sf_journal_create(path, &journal));
    for (int round = 0; round < 3; round++) {
        allocations = 0;
        for (int i = 0; i < WANTED; i++) SF_CHECK_OK(write_entry(journal, &wanted[i]));
        SF_CHECK(round == 0 ? allocations > 0 : allocations == 0);
    }
    sf_journal_close(journal);
    drop_folder();
}

static void too_large(void)
{
    struct sf_journal *journal;
    make_folder();
    SF_MUST(sf_journal_create(path, &journal));
    struct sf_journal_tokens tokens = {.line = 1, .extra = extra,
                                       .extra_bytes = SF_JOURNAL_PAYLOAD_MAX};
    SF_CHECK_FAILS(sf_journal_tokens(journal, &tokens), SF_UNSUPPORTED);
    struct sf_journal_finished finished = {.line = 1,
                                           .bytes = (int64_t)SF_JOURNAL_LINE_BYTES_MAX + 1};
    SF_CHECK_FAILS(sf_journal_finished(journal, &finished), SF_UNSUPPORTED);
    sf_journal_close(journal);
    check_file(HEADER_FRAME, 0, HEADER_FRAME);
    drop_folder();
}

static void moves(void)
{
    char other[96];
    struct sf_journal *journal;
    make_folder();
    SF_MUST(sf_journal_create(path, &journal));
    SF_CHECK_OK(write_entry(journal, &wanted[0]));
    snprintf(other, sizeof other, "%s/nowhere/journal", folder);
    SF_CHECK_FAILS(sf_journal_move(journal, other), SF_IO);
    snprintf(other, sizeof other, "%s/other", folder);
    SF_CHECK_OK(sf_journal_move(journal, other));
    SF_CHECK(access(path, F_OK) != 0);
    SF_CHECK_OK(write_entry(journal, &wanted[1]));
    sf_journal_close(journal);
    SF_CHECK_INT(rename(other, path), 0);
    struct stat info;
    SF_CHECK_INT(stat(path, &info), 0);
    check_file((size_t)info.st_size, 2, info.st_size);
    drop_folder();
}

static const struct sf_test tests[] = {
    {"round trip", round_trip},
    {"never overwrites", never_overwrites},
    {"cut anywhere", cut_anywhere},
    {"flipped bits", flipped_bits},
    {"impossible fields", impossible_fields},
    {"wrong headers", wrong_headers},
    {"huge lengths", huge_lengths},
    {"random bytes", random_bytes},
    {"full disk", full_disk},
    {"warm writing", warm_writing},
    {"too large", too_large},
    {"moves", moves},
    {NULL, NULL}};
SF_TEST_MAIN("journal", tests)
