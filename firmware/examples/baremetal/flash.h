/* Two sectors of flash, in a file of the host. */
#ifndef FLASH_H
#define FLASH_H

#include <certdist.h>

/* Opens the file. If `cut` is not 0, the board loses its power in the middle of that write or
 * erasure, counted from 1. */
void flash_open(const char *path, uint32_t cut);

/* The flash, for cd_flash_load and cd_flash_save. */
extern struct cd_flash flash;

#endif
