/* CoAP messages (RFC 7252) as bytes: the request for the certificate, and what a server sends. The
 * exchange itself is in certdist.c. */
#include "cd_internal.h"

#include <string.h>

enum { VERSION = 1, FETCH = 5, CBOR = 60 };
enum {
  OPTION_ETAG = 4,
  OPTION_URI_PATH = 11,
  OPTION_CONTENT_FORMAT = 12,
  OPTION_MAX_AGE = 14,
  OPTION_BLOCK2 = 23,
};

size_t cd_coap_write_request(const struct cd_device *device, uint8_t *out) {
  const struct cd_settings *settings = device->settings;
  const char *kind = settings->id_kind ? settings->id_kind : "deviceId";
  uint8_t *at = out;
  *at++ = VERSION << 6 | CD_CON << 4 | CD_TOKEN_LENGTH;
  *at++ = FETCH;
  *at++ = (uint8_t)(device->message_id >> 8);
  *at++ = (uint8_t)device->message_id;
  memcpy(at, &device->token, CD_TOKEN_LENGTH);
  at += CD_TOKEN_LENGTH;
  static const uint8_t options[] = {OPTION_URI_PATH << 4 | 4, 'c', 'e', 'r', 't',
                                    (OPTION_CONTENT_FORMAT - OPTION_URI_PATH) << 4 | 1, CBOR};
  memcpy(at, options, sizeof options);
  at += sizeof options;
  if (device->used > 0 || settings->block_size > 0) {
    /* RFC 7959 section 2.2: NUM, M = 0, SZX, in as few bytes as possible. */
    uint32_t number = (uint32_t)device->used >> (device->block_exponent + 4);
    uint32_t block = number << 4 | device->block_exponent;
    int size = block == 0 ? 0 : block < 0x100 ? 1 : 2;
    *at++ = (uint8_t)((OPTION_BLOCK2 - OPTION_CONTENT_FORMAT) << 4 | size);
    while (size-- > 0) *at++ = (uint8_t)(block >> 8 * size);
  }
  *at++ = 0xff;
  *at++ = settings->device_id ? 0xa2 : 0xa1;
  if (settings->device_id) {
    at = cd_cbor_write_text(at, kind, strlen(kind));
    at = cd_cbor_write_text(at, settings->device_id, strlen(settings->device_id));
  }
  at = cd_cbor_write_text(at, "host", 4);
  *at++ = 0xf5; /* true */
  return (size_t)(at - out);
}

static uint32_t read_uint(const uint8_t *at, uint32_t length) {
  uint32_t value = 0;
  for (; length > 0; length--) value = value << 8 | *at++;
  return value;
}

/* Reads the extended delta or length of an option (section 3.1). Returns UINT32_MAX if it is malformed. */
static uint32_t read_extended(const uint8_t **at, const uint8_t *end, uint32_t nibble) {
  if (nibble < 13) return nibble;
  uint32_t size = nibble - 12;
  if (nibble == 15 || (uint32_t)(end - *at) < size) return UINT32_MAX;
  *at += size;
  return (size == 1 ? 13 : 269) + read_uint(*at - size, size);
}

static void take_option(struct cd_message *message, uint32_t number, const uint8_t *value, uint32_t length) {
  if (number == OPTION_BLOCK2) {
    uint32_t block = length <= 3 ? read_uint(value, length) : 7;
    if ((block & 7) == 7 || message->has_block) message->bad_option = true;
    message->has_block = true;
    message->exponent = block & 7;
    message->more = (block & 8) != 0;
    message->number = block >> 4;
  } else if (number == OPTION_MAX_AGE && length <= 4 && !message->has_max_age) {
    message->has_max_age = true;
    message->max_age = read_uint(value, length);
  } else if (number == OPTION_CONTENT_FORMAT && length <= 2 && message->format < 0) {
    message->format = (int32_t)read_uint(value, length);
  } else if (number == OPTION_ETAG) {
    message->etag = cd_crc(length, value, length);
  } else if (number & 1) {
    /* Section 5.4.1: a critical option that is not understood. */
    message->bad_option = true;
  }
}

int cd_coap_read(const uint8_t *bytes, size_t length, uint32_t token, struct cd_message *message) {
  memset(message, 0, sizeof *message);
  message->type = CD_NON;
  message->format = -1;
  if (length < 4 || bytes[0] >> 6 != VERSION) return -1;
  message->type = bytes[0] >> 4 & 3;
  message->code = bytes[1];
  message->message_id = (uint16_t)(bytes[2] << 8 | bytes[3]);
  /* Section 4.1: an empty message has the header only. */
  if (message->code == 0) return length == 4 && (bytes[0] & 15) == 0 ? 0 : -1;
  uint32_t token_length = bytes[0] & 15, number = 0;
  const uint8_t *at = bytes + 4, *end = bytes + length;
  if (token_length > 8 || (uint32_t)(end - at) < token_length) return -1;
  message->ours = token_length == CD_TOKEN_LENGTH && memcmp(at, &token, CD_TOKEN_LENGTH) == 0;
  at += token_length;
  while (at < end && *at != 0xff) {
    uint32_t first = *at++, delta = read_extended(&at, end, first >> 4), size = read_extended(&at, end, first & 15);
    if (delta > 0xffff - number || (uint32_t)(end - at) < size) return -1;
    number += delta;
    take_option(message, number, at, size);
    at += size;
  }
  if (at < end) {
    /* Section 3: a payload marker without a payload is an error. */
    if (++at == end) return -1;
    message->payload = at;
    message->length = (size_t)(end - at);
  }
  return 0;
}
