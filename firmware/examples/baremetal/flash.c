/* Behaves as NOR flash: erased bytes are 0xff, and a byte is written once until it is erased. */
#include "flash.h"

#include "semihosting.h"

#include <string.h>

enum { SLOTS = 2, SLOT_SIZE = 512, PAGE = 64, POWER_CUT = 75 };

_Static_assert((int)SLOT_SIZE >= (int)CD_FLASH_SLOT_MIN, "a slot holds the longest record");

static int file = -1;
static uint32_t operations_left;

/* Returns how many of these bytes are written before the power fails. */
static size_t until_cut(size_t length) { return operations_left == 1 ? length / 2 : length; }

static void count_operation(void) {
  if (operations_left == 1) semihosting_exit(POWER_CUT);
  if (operations_left > 0) operations_left--;
}

static int fill(uint32_t at, size_t length) {
  uint8_t page[PAGE];
  memset(page, 0xff, sizeof page);
  int result = 0;
  for (size_t done = 0; done < length && result == 0; done += sizeof page)
    result = semihosting_write(file, at + done, page, sizeof page);
  return result;
}

static int erase(void *argument, int slot) {
  (void)argument;
  int result = fill((uint32_t)slot * SLOT_SIZE, until_cut(SLOT_SIZE));
  count_operation();
  return result;
}

static int write(void *argument, int slot, uint32_t at, const void *bytes, size_t length) {
  (void)argument;
  uint32_t start = (uint32_t)slot * SLOT_SIZE + at;
  for (size_t byte = 0; byte < length; byte++) {
    uint8_t before;
    if (semihosting_read(file, start + byte, &before, 1) != 0 || before != 0xff) return -1;
  }
  int result = semihosting_write(file, start, bytes, until_cut(length));
  count_operation();
  return result;
}

static int read(void *argument, int slot, uint32_t at, void *bytes, size_t length) {
  (void)argument;
  return semihosting_read(file, (uint32_t)slot * SLOT_SIZE + at, bytes, length);
}

struct cd_flash flash = {
    .slot_size = SLOT_SIZE,
    .write_size = 4,
    .erase = erase,
    .write = write,
    .read = read,
};

void flash_open(const char *path, uint32_t cut) {
  file = path ? semihosting_open(path) : -1;
  uint8_t last;
  bool is_new = file >= 0 && semihosting_read(file, SLOTS * SLOT_SIZE - 1, &last, 1) != 0;
  if (file < 0 || (is_new && fill(0, SLOTS * SLOT_SIZE) != 0))
    semihosting_fail("the store cannot be opened; is store=FILE there?");
  operations_left = cut;
}
