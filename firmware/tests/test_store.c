/* The record, and the two slots of flash, with power that fails at every byte. */
#include "world.h"

static struct cd_certificate certificate_of(const char *name, const char *host) {
  struct cd_certificate certificate;
  memset(&certificate, 0, sizeof certificate);
  strcpy(certificate.product_key, "a1BwAGVxyz2");
  strcpy(certificate.device_name, name);
  strcpy(certificate.device_secret, "9d85c99e0123456789abcdef01234567");
  strcpy(certificate.host, host);
  return certificate;
}

void a_record_is_read_as_it_was_written(void) {
  struct cd_certificate in = certificate_of("PLUG0001", ""), out;
  uint8_t record[CD_RECORD_MAX];
  CHECK(cd_record_read(record, cd_record_write(&in, record), &out) == 0);
  CHECK(strcmp(out.device_name, "PLUG0001") == 0 && out.host[0] == 0);
  memset(&in, 'x', sizeof in);
  in.product_key[CD_PRODUCT_KEY_ROOM - 1] = in.device_name[CD_DEVICE_NAME_ROOM - 1] = 0;
  in.device_secret[CD_DEVICE_SECRET_ROOM - 1] = in.host[CD_HOST_ROOM - 1] = 0;
  CHECK(cd_record_write(&in, record) == CD_RECORD_MAX);
  CHECK(cd_record_read(record, CD_RECORD_MAX, &out) == 0 && memcmp(&in, &out, sizeof in) == 0);
}

void a_damaged_record_is_refused(void) {
  struct cd_certificate in = certificate_of("PLUG0001", "h"), out;
  uint8_t record[CD_RECORD_MAX + 1];
  size_t length = cd_record_write(&in, record);
  for (size_t prefix = 0; prefix < length; prefix++) CHECK(cd_record_read(record, prefix, &out) < 0);
  for (size_t bit = 0; bit < length * 8; bit++) {
    record[bit / 8] ^= (uint8_t)(1 << bit % 8);
    CHECK(cd_record_read(record, length, &out) < 0);
    record[bit / 8] ^= (uint8_t)(1 << bit % 8);
  }
  CHECK(cd_record_read(record, length + 1, &out) < 0);
}

/* A CRC says that the bytes are as written, not that they are a certificate. */
void a_record_of_other_texts_is_refused(void) {
  static const struct {
    const char *bytes;
    size_t length;
  } others[] = {{"\x01" "a\0b\0\0\0", 7}, {"\x01" "a\0b\0c\0", 7}, {"\x01" "a\0b\0c\0d\0e\0", 11}, {"\x02" "a\0b\0c\0\0", 8}};
  struct cd_certificate out;
  for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
    uint8_t record[32];
    memcpy(record, others[i].bytes, others[i].length);
    uint32_t crc = cd_crc(0, record, others[i].length);
    memcpy(record + others[i].length, &crc, sizeof crc);
    CHECK(cd_record_read(record, others[i].length + 4, &out) < 0);
  }
  CHECK(cd_crc(0, "123456789", 9) == 0xcbf43926);
}

/* --- Flash --- */

enum { SLOT = 512 };

static struct {
  uint8_t slots[2][SLOT];
  long power; /* bytes that can still be erased or written */
  long work;
  bool worn;  /* writes do nothing */
  uint16_t unit;
} chip;

/* Power fails in the middle of an erase, too: the bytes before are erased, the one is anything. */
static int flash_erase(void *arg, int slot) {
  (void)arg;
  for (int i = 0; i < SLOT; i++) {
    chip.work++;
    if (chip.power-- <= 0) {
      chip.slots[slot][i] = (uint8_t)world_random();
      return -1;
    }
    chip.slots[slot][i] = 0xff;
  }
  return 0;
}

static int flash_write(void *arg, int slot, uint32_t at, const void *bytes, size_t length) {
  (void)arg;
  CHECK(at % chip.unit == 0 && length % chip.unit == 0 && at + length <= SLOT);
  for (size_t i = 0; i < length; i++) {
    uint8_t byte = ((const uint8_t *)bytes)[i];
    CHECK(chip.worn || chip.slots[slot][at + i] == 0xff); /* written once after each erase */
    chip.work++;
    if (chip.power-- <= 0) {
      chip.slots[slot][at + i] = (uint8_t)(byte | world_random());
      return -1;
    }
    if (!chip.worn) chip.slots[slot][at + i] = byte;
  }
  return 0;
}

static int flash_read(void *arg, int slot, uint32_t at, void *bytes, size_t length) {
  (void)arg;
  CHECK(at + length <= SLOT);
  memcpy(bytes, chip.slots[slot] + at, length);
  return 0;
}

static struct cd_flash flash_with(uint16_t unit) {
  struct cd_flash flash = {NULL, SLOT, unit, flash_erase, flash_write, flash_read};
  memset(&chip, 0xff, sizeof chip);
  chip.power = 1000000;
  chip.work = 0;
  chip.worn = false;
  chip.unit = unit;
  return flash;
}

static bool has(struct cd_flash *flash, const char *record) {
  char loaded[CD_RECORD_MAX];
  int length = cd_flash_load(flash, loaded, sizeof loaded);
  CHECK(length >= 0);
  return record ? length == (int)strlen(record) && memcmp(loaded, record, strlen(record)) == 0 : length == 0;
}

static int save_text(struct cd_flash *flash, const char *record) {
  return cd_flash_save(flash, record, strlen(record));
}

void flash_keeps_the_newest_record(void) {
  for (uint16_t unit = 1; unit <= 32; unit = (uint16_t)(unit * 2)) {
    struct cd_flash flash = flash_with(unit);
    CHECK(has(&flash, NULL));
    for (int i = 0; i < 10; i++) {
      char record[80];
      snprintf(record, sizeof record, "record %d %.*s", i, i * 5, "................................................");
      CHECK(save_text(&flash, record) == 0 && has(&flash, record));
    }
  }
}

static const char *const old_record = "the older record, which is complete";
static const char *const new_record = "the newer record, which is a little longer than the older one";

/* Returns the bytes of work that an action takes, or ends it after `power` of them. */
static long act(struct cd_flash *flash, const char *record, long power) {
  chip.work = 0;
  chip.power = power;
  if (record) (void)save_text(flash, record);
  else (void)cd_flash_save(flash, NULL, 0);
  long work = chip.work;
  chip.power = 1000000;
  return work;
}

void power_may_fail_at_every_byte_of_a_save(void) {
  for (uint16_t unit = 1; unit <= 32; unit = (uint16_t)(unit * 4)) {
    for (int before = 0; before <= 3; before++) {
      long work = 1;
      for (long cut = 0; cut < work; cut++) {
        struct cd_flash flash = flash_with(unit);
        for (int i = 1; i < before; i++) CHECK(save_text(&flash, "one before") == 0);
        if (before > 0) CHECK(save_text(&flash, old_record) == 0);
        if (cut == 0) {
          uint8_t kept[2][SLOT];
          memcpy(kept, chip.slots, sizeof kept);
          work = act(&flash, new_record, 1000000);
          CHECK(has(&flash, new_record));
          memcpy(chip.slots, kept, sizeof kept);
        }
        act(&flash, new_record, cut);
        CHECK(has(&flash, before > 0 ? old_record : NULL) || has(&flash, new_record));
        /* And it can be saved again. */
        CHECK(save_text(&flash, new_record) == 0 && has(&flash, new_record));
      }
      CHECK(work > SLOT);
    }
  }
}

void power_may_fail_at_every_byte_of_an_erasure(void) {
  for (long cut = 0; cut <= 2 * SLOT; cut++) {
    struct cd_flash flash = flash_with(4);
    CHECK(save_text(&flash, old_record) == 0 && save_text(&flash, new_record) == 0);
    act(&flash, NULL, cut);
    /* The older record never comes back. */
    CHECK(has(&flash, new_record) || has(&flash, NULL));
  }
  struct cd_flash flash = flash_with(4);
  CHECK(save_text(&flash, old_record) == 0 && save_text(&flash, new_record) == 0);
  CHECK(cd_flash_save(&flash, NULL, 0) == 0);
  for (int i = 0; i < SLOT; i++) CHECK(chip.slots[0][i] == 0xff && chip.slots[1][i] == 0xff);
}

void every_changed_bit_of_a_slot_falls_back_to_the_other(void) {
  for (size_t bit = 0; bit < (12 + strlen(new_record)) * 8; bit++) {
    struct cd_flash flash = flash_with(1);
    CHECK(save_text(&flash, old_record) == 0 && save_text(&flash, new_record) == 0);
    chip.slots[0][bit / 8] ^= (uint8_t)(1 << bit % 8);
    CHECK(has(&flash, old_record));
  }
}

void sequence_numbers_wrap(void) {
  struct cd_flash flash = flash_with(1);
  /* A slot with the highest number, as if it had been saved so often. */
  struct {
    uint32_t sequence;
    uint16_t length, complement;
    uint32_t crc;
    char record[4];
  } slot = {UINT32_MAX, 4, 0xffff ^ 4, 0, {'o', 'l', 'd', '.'}};
  slot.crc = cd_crc(cd_crc(0, &slot, 8), slot.record, 4);
  memcpy(chip.slots[0], &slot, sizeof slot);
  CHECK(has(&flash, "old."));
  CHECK(save_text(&flash, "new") == 0 && has(&flash, "new"));
  CHECK(save_text(&flash, "newer") == 0 && has(&flash, "newer"));
}

void a_worn_flash_is_noticed(void) {
  struct cd_flash flash = flash_with(1);
  chip.worn = true;
  CHECK(save_text(&flash, old_record) < 0);
}

void a_flash_that_cannot_work_is_refused(void) {
  struct cd_flash flash = flash_with(1);
  uint8_t record[CD_RECORD_MAX + 1] = {0};
  CHECK(cd_flash_save(&flash, record, CD_RECORD_MAX + 1) < 0);
  CHECK(cd_flash_save(&flash, record, CD_RECORD_MAX) == 0);
  CHECK(cd_flash_load(&flash, record, 10) < 0);
  flash.write_size = 64;
  CHECK(save_text(&flash, "x") < 0);
  flash.write_size = 0;
  CHECK(save_text(&flash, "x") < 0);
  flash.write_size = 1;
  flash.slot_size = CD_FLASH_SLOT_MIN - 1;
  CHECK(save_text(&flash, "x") < 0);
}

void random_slots_are_no_record(void) {
  struct cd_flash flash = flash_with(1);
  for (int try = 0; try < 2000; try++) {
    for (int i = 0; i < 2 * SLOT; i++) chip.slots[i / SLOT][i % SLOT] = (uint8_t)world_random();
    CHECK(has(&flash, NULL));
  }
}

/* --- The device on such a flash --- */

static struct cd_flash *the_flash;
static int on_load(void *arg, void *record, size_t room) {
  (void)arg;
  return cd_flash_load(the_flash, record, room);
}
static int on_save(void *arg, const void *record, size_t length) {
  (void)arg;
  return cd_flash_save(the_flash, record, length);
}

/* Power fails while the answer is stored: after the next start, the device either has the
 * certificate or asks again. */
void a_device_survives_a_power_cut_while_it_stores(void) {
  for (long cut = 0; cut < SLOT + 300; cut++) {
    struct cd_flash flash = flash_with(4);
    the_flash = &flash;
    world_begin((uint64_t)cut + 1);
    world.port.load = on_load;
    world.port.save = on_save;
    world_ask();
    chip.power = cut;
    struct message answer = piggybacked(0x45);
    add_payload(&answer, certificate_cbor, certificate_cbor_length);
    enum cd_state state = deliver(&answer);
    CHECK(state == CD_DONE || state == CD_STORING);
    chip.power = 1000000;
    bool stored = state == CD_DONE;
    world.opened = world.closed = 0;
    state = world_start();
    CHECK(state == CD_DONE || (!stored && state == CD_WAITING));
    if (state == CD_DONE) {
      struct cd_certificate certificate;
      CHECK(cd_get_certificate(&world.device, &certificate) == 0 && strcmp(certificate.device_name, "PLUG0001") == 0);
      continue;
    }
    world_until_next_session(30 * SECONDS);
    answer = piggybacked(0x45);
    add_payload(&answer, certificate_cbor, certificate_cbor_length);
    CHECK(deliver(&answer) == CD_DONE);
  }
}
