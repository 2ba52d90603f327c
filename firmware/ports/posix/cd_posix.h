/* The port for POSIX systems: a socket, a file, the system's clock and random numbers. */
#ifndef CD_POSIX_H
#define CD_POSIX_H

#include "cd_socket.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cd_posix {
  struct cd_port port;
  struct cd_socket socket;
  const char *path; /* of the record; its folder exists */
};

/* Sets the port up for a server and a file. The texts must outlive it. */
void cd_posix_init(struct cd_posix *, const char *host, const char *service, const char *path);

/* Reads a private file. Returns its length, 0 if there is none, or -1 if it does not fit or
 * cannot be read. */
int cd_file_load(const char *path, void *record, size_t room);

/* Replaces a file, readable by its owner only: the file has the new bytes or the old ones, also
 * after a power cut. Length 0 removes it. Returns 0, or -1. */
int cd_file_save(const char *path, const void *record, size_t length);

#ifdef __cplusplus
}
#endif
#endif
