/* model/scan.h: the pre-tokenizers of split.c once more, as loops over classes of characters. */
#ifndef SHEAF_MODEL_SCAN_H
#define SHEAF_MODEL_SCAN_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

enum sf_scan_words { SF_SCAN_GPT2, SF_SCAN_LLAMA3 };
/* digits_max: numerals of a piece, 0: any number.  digits_apart: numerals are cut out of the text
 * first, each by itself, so that what is before one ends there. */
struct sf_scan_rules { enum sf_scan_words words; uint8_t digits_max, digits_apart; };

/* Before the first piece; asks PCRE2 for the classes, once in a process, so that both have one
 * edition of Unicode. */
sf_status sf_scan_prepare(void);
/* Bytes of the first piece of well-formed text of at least one byte.  Safe from several threads. */
size_t    sf_scan_piece(const struct sf_scan_rules *, const char *text, size_t bytes);

SF_C_END
#endif
