/* Two slots of flash for one record. A slot begins with a header: a sequence number, the record's
 * length, its complement, and a CRC of all that and the record. The newer valid slot counts. A new
 * record goes into the other slot, so that power may fail at any moment. */
#include "cd_internal.h"

#include <string.h>

enum { LARGEST_UNIT = 32, ERASED = 0xff };

/* In the byte order of the processor: nothing else reads it. */
struct slot {
  uint32_t sequence;
  uint16_t length, complement;
  uint32_t crc; /* of the eight bytes before and the record */
  uint8_t record[CD_RECORD_MAX];
  uint8_t padding[LARGEST_UNIT];
};

enum { HEADER = offsetof(struct slot, record), CHECKED = offsetof(struct slot, crc) };

static uint32_t crc_of(const struct slot *slot) {
  return cd_crc(cd_crc(0, slot, CHECKED), slot->record, slot->length);
}

/* Reads a slot. Its length is 0 if it is not valid. */
static void read_slot(const struct cd_flash *flash, int number, struct slot *slot) {
  if (flash->read(flash->arg, number, 0, slot, HEADER) < 0 || slot->length + slot->complement != 0xffff ||
      slot->length > CD_RECORD_MAX || flash->read(flash->arg, number, HEADER, slot->record, slot->length) < 0 ||
      crc_of(slot) != slot->crc)
    slot->length = 0;
}

/* Reads the newest valid slot, and returns its number. If none is valid, its length is 0. */
static int read_newest(const struct cd_flash *flash, struct slot *slot) {
  read_slot(flash, 1, slot);
  uint32_t sequence = slot->sequence, length = slot->length;
  read_slot(flash, 0, slot);
  /* Sequence numbers wrap. */
  if (length == 0 || (slot->length > 0 && (int32_t)(slot->sequence - sequence) > 0)) return 0;
  read_slot(flash, 1, slot);
  return 1;
}

int cd_flash_load(void *arg, void *record, size_t room) {
  struct slot slot;
  read_newest((const struct cd_flash *)arg, &slot);
  int length = slot.length <= room ? slot.length : -1;
  if (length > 0) memcpy(record, slot.record, slot.length);
  cd_wipe(&slot, sizeof slot);
  return length;
}

int cd_flash_save(void *arg, const void *record, size_t length) {
  const struct cd_flash *flash = (const struct cd_flash *)arg;
  struct slot slot;
  size_t unit = flash->write_size;
  if (length > CD_RECORD_MAX || flash->slot_size < CD_FLASH_SLOT_MIN || unit < 1 || LARGEST_UNIT % unit != 0) return -1;
  int number = 1 - read_newest(flash, &slot);
  uint32_t sequence = slot.sequence + 1;
  cd_wipe(&slot, sizeof slot);
  if (flash->erase(flash->arg, number) < 0) return -1;
  /* The newest is erased last, or an older record would come back if power failed in between. */
  if (length == 0) return flash->erase(flash->arg, 1 - number);

  memset(&slot, ERASED, sizeof slot);
  slot.sequence = sequence;
  slot.length = (uint16_t)length;
  slot.complement = (uint16_t)~slot.length;
  memcpy(slot.record, record, length);
  slot.crc = crc_of(&slot);
  /* Only whole units can be written. */
  int result = flash->write(flash->arg, number, 0, &slot, (HEADER + length + unit - 1) / unit * unit);
  if (result >= 0) {
    read_slot(flash, number, &slot);
    result = slot.length == length && slot.sequence == sequence ? 0 : -1;
  }
  cd_wipe(&slot, sizeof slot);
  return result;
}
