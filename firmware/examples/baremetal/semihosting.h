/* Semihosting (Arm IHI 0094): how a program on an emulated board talks to the emulator. It stands
 * in for flash, a serial port and the settings that a product burns in. */
#ifndef SEMIHOSTING_H
#define SEMIHOSTING_H

#include <stddef.h>
#include <stdint.h>

/* Reads the emulator's command line into the buffer, with a NUL. Returns its length, or a negative
 * number. */
int semihosting_arguments(char *buffer, size_t room);

/* Writes text to the emulator's console. */
void semihosting_print(const char *text);

/* Opens a file for reading and writing, and creates it if necessary. Returns a handle, or a
 * negative number. */
int semihosting_open(const char *path);

/* Read and write this many bytes from this position. Return 0, or a negative number. */
int semihosting_read(int file, uint32_t at, void *buffer, size_t length);
int semihosting_write(int file, uint32_t at, const void *buffer, size_t length);

/* End the emulator with this exit code, or with a line that says why and code 70. */
_Noreturn void semihosting_exit(int code);
_Noreturn void semihosting_fail(const char *why);

#endif
