/* What the files of the core share. Firmware includes certdist.h only. */
#ifndef CD_INTERNAL_H
#define CD_INTERNAL_H

#include "certdist_dtls.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --- cd_cbor.c --- */

/* A text in a map, and its place in a struct. */
struct cd_text {
  const char *key; /* NULL: the integer key -1, whose text is for people */
  uint16_t offset, room;
};

/* Reads texts from a map in any valid encoding (RFC 8949) into a struct that is zeroed. Other
 * entries are skipped. Returns 0, or -1 if the bytes are not exactly one map, nested at most eight
 * deep, or if a text is there twice, is no text, is longer than its room, or has a character
 * outside 0x20..0x7e. A text for people is cut instead, and such characters become '?'. */
int cd_cbor_read(const uint8_t *bytes, size_t length, const struct cd_text *texts, int count, void *out);

/* Writes a text of up to 255 bytes, in at most length + 2 bytes. Returns the end. */
uint8_t *cd_cbor_write_text(uint8_t *at, const char *text, size_t length);

/* --- cd_coap.c --- */

enum { CD_CON, CD_NON, CD_ACK, CD_RST };
enum { CD_TOKEN_LENGTH = 4, CD_REQUEST_MAX = 128 };

struct cd_message {
  uint8_t type, code;
  uint16_t message_id;
  bool ours;         /* has the token */
  bool bad_option;   /* has a critical option that is unknown, malformed or repeated */
  bool has_max_age, has_block;
  bool more;         /* of the block */
  uint8_t exponent;  /* of the block: 16 << exponent bytes */
  uint32_t number;   /* of the block */
  uint32_t max_age;  /* seconds */
  uint32_t etag;     /* a checksum of it; 0: none */
  int32_t format;    /* Content-Format; -1: none */
  const uint8_t *payload;
  size_t length;     /* of the payload */
};

/* Reads a message (RFC 7252 section 3). Returns 0, or -1 if its format is wrong. Type, code and
 * message ID are filled in if it has at least four bytes and version 1; else `type` is CD_NON. */
int cd_coap_read(const uint8_t *bytes, size_t length, uint32_t token, struct cd_message *);

/* Writes the request for a block, or for the whole answer, into CD_REQUEST_MAX bytes. Returns its
 * length. */
size_t cd_coap_write_request(const struct cd_device *, uint8_t *out);

/* --- cd_record.c --- */

/* CRC-32 of IEEE 802.3, continued from an earlier result; begin with 0. */
uint32_t cd_crc(uint32_t crc, const void *bytes, size_t length);
/* The texts of a certificate, in the order of the record. */
enum { CD_TEXTS = 4 };
extern const struct cd_text cd_texts[CD_TEXTS];

/* Writes the record of a certificate into CD_RECORD_MAX bytes. Returns its length. */
size_t cd_record_write(const struct cd_certificate *, uint8_t *out);
/* Reads a record. Returns 0, or -1 if it is not a complete, unchanged record. */
int cd_record_read(const uint8_t *record, size_t length, struct cd_certificate *);

/* Returns the offset of a byte, or `length` if it is not there. */
size_t cd_find(const void *bytes, size_t length, char byte);

/* Whether a text has 1 to `most` characters of A-Z a-z 0-9 . _ : @ -. */
bool cd_is_name(const char *text, size_t most);

#ifdef __cplusplus
}
#endif
#endif
