/* Text for people, without printf. */
#ifndef PRINT_H
#define PRINT_H

#include <stdint.h>

/* Prints texts up to NULL. */
void print(const char *first, ...);

/* Returns a number in decimal. The result is valid until the fifth next call. */
const char *decimal(uint32_t number);

#endif
