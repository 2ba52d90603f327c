/* Two slots of flash for one record. A slot begins with a header: a sequence number, the record's
 * length, its complement, and a CRC of all that and the record. The newer valid slot counts. A new
 * record goes into the other slot, so that power may fail at any moment. */
#include "cd_internal.h"

#include <string.h>

enum { HEADER = 12, CHUNK = 32, ERASED = 0xff };

static uint32_t read_le(const uint8_t *at, int size) {
  uint32_t value = 0;
  while (size-- > 0) value = value << 8 | at[size];
  return value;
}

static void write_le(uint8_t *at, uint32_t value, int size) {
  for (; size > 0; size--, value >>= 8) *at++ = (uint8_t)value;
}

static uint32_t least(uint32_t a, uint32_t b) {
  return a < b ? a : b;
}

/* Checks a slot without room for its record. Returns the record's length, or 0. */
static uint32_t check(const struct cd_flash *flash, int slot, uint32_t *sequence) {
  uint8_t header[HEADER], chunk[CHUNK];
  if (flash->read(flash->arg, slot, 0, header, sizeof header) < 0) return 0;
  *sequence = read_le(header, 4);
  uint32_t length = read_le(header + 4, 2), crc = cd_crc(0, header, 8);
  if ((length ^ 0xffff) != read_le(header + 6, 2) || length < 1 || length > CD_RECORD_MAX) return 0;
  for (uint32_t at = 0; at < length; at += CHUNK) {
    uint32_t size = least(CHUNK, length - at);
    if (flash->read(flash->arg, slot, HEADER + at, chunk, size) < 0) return 0;
    crc = cd_crc(crc, chunk, size);
  }
  cd_wipe(chunk, sizeof chunk);
  return crc == read_le(header + 8, 4) ? length : 0;
}

/* Finds the newest valid slot. Returns -1 if there is none. */
static int newest(const struct cd_flash *flash, uint32_t *length, uint32_t *sequence) {
  uint32_t lengths[2], sequences[2] = {0, 0};
  for (int slot = 0; slot < 2; slot++) lengths[slot] = check(flash, slot, &sequences[slot]);
  /* Sequence numbers wrap. */
  int slot = lengths[0] && lengths[1] ? (int32_t)(sequences[1] - sequences[0]) > 0 : lengths[1] ? 1 : 0;
  *length = lengths[slot];
  *sequence = sequences[slot];
  return lengths[slot] ? slot : -1;
}

int cd_flash_load(void *arg, void *record, size_t room) {
  const struct cd_flash *flash = (const struct cd_flash *)arg;
  uint32_t length, sequence;
  int slot = newest(flash, &length, &sequence);
  if (slot < 0) return 0;
  if (length > room || flash->read(flash->arg, slot, HEADER, record, length) < 0) return -1;
  return (int)length;
}

int cd_flash_save(void *arg, const void *record, size_t length) {
  const struct cd_flash *flash = (const struct cd_flash *)arg;
  const uint8_t *bytes = (const uint8_t *)record;
  uint32_t old_length, sequence;
  int old = newest(flash, &old_length, &sequence), slot = old == 0 ? 1 : 0;
  if (length > CD_RECORD_MAX || flash->slot_size < CD_FLASH_SLOT_MIN) return -1;
  if (flash->write_size < 1 || CHUNK % flash->write_size != 0) return -1;
  if (flash->erase(flash->arg, slot) < 0) return -1;
  /* The newest is erased last, or an older record would come back if power failed in between. */
  if (length == 0) return flash->erase(flash->arg, 1 - slot);

  uint8_t header[HEADER], chunk[CHUNK];
  sequence = old < 0 ? 1 : sequence + 1;
  write_le(header, sequence, 4);
  write_le(header + 4, (uint32_t)length, 2);
  write_le(header + 6, (uint32_t)length ^ 0xffff, 2);
  write_le(header + 8, cd_crc(cd_crc(0, header, 8), bytes, length), 4);
  uint32_t total = HEADER + (uint32_t)length;
  int result = 0;
  for (uint32_t at = 0; at < total && result >= 0; at += CHUNK) {
    uint32_t size = least(CHUNK, total - at);
    memset(chunk, ERASED, sizeof chunk);
    for (uint32_t i = 0; i < size; i++) chunk[i] = at + i < HEADER ? header[at + i] : bytes[at + i - HEADER];
    /* Only whole units can be written. */
    size = (size + flash->write_size - 1) / flash->write_size * flash->write_size;
    result = flash->write(flash->arg, slot, at, chunk, size);
  }
  cd_wipe(chunk, sizeof chunk);
  uint32_t written;
  if (result < 0 || check(flash, slot, &written) != length || written != sequence) return -1;
  return 0;
}
