/* The record in which a certificate is stored: a version, four texts with a NUL after each, and a
 * CRC-32 of all that, in the byte order of the processor. */
#include "cd_internal.h"

#include <string.h>

enum { RECORD_VERSION = 1, CRC_SIZE = 4 };

uint32_t cd_crc(uint32_t crc, const void *bytes, size_t length) {
  const uint8_t *at = (const uint8_t *)bytes;
  crc = ~crc;
  for (; length > 0; length--) {
    crc ^= *at++;
    for (int i = 0; i < 8; i++) crc = crc >> 1 ^ (0xedb88320 & (0 - (crc & 1)));
  }
  return ~crc;
}

void cd_wipe(void *memory, size_t length) {
  volatile uint8_t *at = (volatile uint8_t *)memory;
  while (length-- > 0) *at++ = 0;
}

size_t cd_find(const void *bytes, size_t length, char byte) {
  size_t at = 0;
  while (at < length && ((const char *)bytes)[at] != byte) at++;
  return at;
}

bool cd_is_name(const char *text, size_t most) {
  size_t length = strlen(text);
  if (length < 1 || length > most) return false;
  for (; *text; text++) {
    char c = *text;
    /* In ASCII, ':' follows '9', and '@' precedes 'A'. */
    if (!((c >= '0' && c <= ':') || (c >= '@' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '-' || c == '.' || c == '_'))
      return false;
  }
  return true;
}

const struct cd_text cd_texts[CD_TEXTS] = {
    {"productKey", offsetof(struct cd_certificate, product_key), CD_PRODUCT_KEY_ROOM},
    {"deviceName", offsetof(struct cd_certificate, device_name), CD_DEVICE_NAME_ROOM},
    {"deviceSecret", offsetof(struct cd_certificate, device_secret), CD_DEVICE_SECRET_ROOM},
    {"host", offsetof(struct cd_certificate, host), CD_HOST_ROOM},
};

size_t cd_record_write(const struct cd_certificate *certificate, uint8_t *out) {
  uint8_t *at = out;
  *at++ = RECORD_VERSION;
  for (int i = 0; i < CD_TEXTS; i++) {
    const char *text = (const char *)certificate + cd_texts[i].offset;
    size_t size = strlen(text) + 1;
    memcpy(at, text, size);
    at += size;
  }
  uint32_t crc = cd_crc(0, out, (size_t)(at - out));
  memcpy(at, &crc, CRC_SIZE);
  return (size_t)(at - out) + CRC_SIZE;
}

int cd_record_read(const uint8_t *record, size_t length, struct cd_certificate *certificate) {
  if (length < 1 + CD_TEXTS + CRC_SIZE || length > CD_RECORD_MAX || record[0] != RECORD_VERSION) return -1;
  const uint8_t *at = record + 1, *end = record + length - CRC_SIZE;
  uint32_t crc = cd_crc(0, record, length - CRC_SIZE);
  if (memcmp(end, &crc, CRC_SIZE) != 0) return -1;
  for (int i = 0; i < CD_TEXTS; i++) {
    size_t left = (size_t)(end - at), size = cd_find(at, left, 0);
    /* Only the host may be empty. */
    if (size == left || size >= cd_texts[i].room || (i < CD_TEXTS - 1 && size == 0)) return -1;
    memcpy((char *)certificate + cd_texts[i].offset, at, ++size);
    at += size;
  }
  return at == end ? 0 : -1;
}
