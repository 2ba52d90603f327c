/* The emulator's command line, in words NAME=VALUE. It stands in for the settings that a product
 * keeps in flash. */
#ifndef ARGUMENTS_H
#define ARGUMENTS_H

#include <stdint.h>

/* Reads the command line. */
void arguments_read(void);

/* Returns a value, or NULL. */
const char *argument(const char *name);

/* Returns a decimal number, or this one if the argument is missing. */
uint32_t argument_number(const char *name, uint32_t otherwise);

#endif
