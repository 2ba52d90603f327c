#include "semihosting.h"

#include <string.h>

enum {
  SYS_OPEN = 0x01,
  SYS_WRITE0 = 0x04,
  SYS_WRITE = 0x05,
  SYS_READ = 0x06,
  SYS_SEEK = 0x0a,
  SYS_GET_CMDLINE = 0x15,
  SYS_EXIT_EXTENDED = 0x20,
};
enum { OPEN_READ_PLUS = 3, OPEN_WRITE_PLUS = 7 }; /* "r+b", "w+b" */
enum { STOPPED_APPLICATION_EXIT = 0x20026 };
enum { INTERNAL_ERROR = 70 };

static int call(int operation, const void *argument) {
  register int r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

int semihosting_arguments(char *buffer, size_t room) {
  struct {
    char *buffer;
    size_t room;
  } block = {buffer, room};
  return call(SYS_GET_CMDLINE, &block) == 0 ? (int)block.room : -1;
}

void semihosting_print(const char *text) { call(SYS_WRITE0, text); }

int semihosting_open(const char *path) {
  struct {
    const char *path;
    int mode;
    size_t length;
  } block = {path, OPEN_READ_PLUS, strlen(path)};
  int file = call(SYS_OPEN, &block);
  if (file >= 0) return file;
  block.mode = OPEN_WRITE_PLUS;
  return call(SYS_OPEN, &block);
}

static int seek(int file, uint32_t at) {
  uint32_t block[] = {(uint32_t)file, at};
  return call(SYS_SEEK, block);
}

int semihosting_read(int file, uint32_t at, void *buffer, size_t length) {
  uint32_t block[] = {(uint32_t)file, (uint32_t)buffer, length};
  /* The call returns the number of bytes that it has not read. */
  return seek(file, at) == 0 && call(SYS_READ, block) == 0 ? 0 : -1;
}

int semihosting_write(int file, uint32_t at, const void *buffer, size_t length) {
  uint32_t block[] = {(uint32_t)file, (uint32_t)buffer, length};
  return seek(file, at) == 0 && call(SYS_WRITE, block) == 0 ? 0 : -1;
}

void semihosting_exit(int code) {
  uint32_t block[] = {STOPPED_APPLICATION_EXIT, (uint32_t)code};
  call(SYS_EXIT_EXTENDED, block);
  for (;;) {
  }
}

void semihosting_fail(const char *why) {
  semihosting_print(why);
  semihosting_print("\n");
  semihosting_exit(INTERNAL_ERROR);
}
