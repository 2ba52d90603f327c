#include "cd_posix.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PATH_ROOM = 1024 };

int cd_random(void *out, size_t length) {
  uint8_t *at = (uint8_t *)out;
  while (length > 0) {
    ssize_t got = getrandom(at, length, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return -1;
    at += got;
    length -= (size_t)got;
  }
  return 0;
}

static uint32_t now_ms(void *arg) {
  struct timespec now = {0, 0};
  (void)arg;
#ifdef CLOCK_BOOTTIME
  clock_gettime(CLOCK_BOOTTIME, &now); /* goes on while the system sleeps */
#else
  clock_gettime(CLOCK_MONOTONIC, &now);
#endif
  return (uint32_t)((uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000);
}

int cd_file_load(const char *path, void *record, size_t room) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return errno == ENOENT ? 0 : -1;
  uint8_t *at = (uint8_t *)record;
  size_t length = 0;
  ssize_t got = 1;
  while (got != 0 && length < room) {
    got = read(file, at + length, room - length);
    if (got < 0 && errno == EINTR) got = 1;
    else if (got < 0) break;
    else length += (size_t)got;
  }
  uint8_t more;
  if (got > 0 && read(file, &more, 1) != 0) got = -1;
  close(file);
  return got < 0 ? -1 : (int)length;
}

/* Makes a rename or a removal in the folder of `path` durable. */
static int sync_folder_of(const char *path) {
  char folder[PATH_ROOM];
  const char *slash = strrchr(path, '/');
  size_t length = slash ? (size_t)(slash - path) : 0;
  if (length >= sizeof folder) return -1;
  memcpy(folder, path, length);
  folder[length] = 0;
  int descriptor = open(length > 0 ? folder : slash ? "/" : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return -1;
  int result = fsync(descriptor);
  close(descriptor);
  return result;
}

static int write_all(int file, const uint8_t *at, size_t length) {
  while (length > 0) {
    ssize_t written = write(file, at, length);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return -1;
    at += written;
    length -= (size_t)written;
  }
  return fsync(file);
}

int cd_file_save(const char *path, const void *record, size_t length) {
  if (length == 0) return unlink(path) < 0 && errno != ENOENT ? -1 : sync_folder_of(path);
  char temporary[PATH_ROOM];
  int size = snprintf(temporary, sizeof temporary, "%s.new", path);
  if (size < 0 || (size_t)size >= sizeof temporary) return -1;
  /* One that a power cut left behind, or that somebody else has put there, is not reused. */
  if (unlink(temporary) < 0 && errno != ENOENT) return -1;
  int file = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR);
  if (file < 0) return -1;
  int result = write_all(file, (const uint8_t *)record, length);
  if (close(file) < 0) result = -1;
  if (result == 0) result = rename(temporary, path);
  if (result < 0) {
    (void)unlink(temporary);
    return -1;
  }
  return sync_folder_of(path);
}

static int send_datagram(void *arg, const void *datagram, size_t length) {
  return cd_socket_send(&((struct cd_posix *)arg)->socket, datagram, length);
}

static int load(void *arg, void *record, size_t room) {
  return cd_file_load(((struct cd_posix *)arg)->path, record, room);
}

static int save(void *arg, const void *record, size_t length) {
  return cd_file_save(((struct cd_posix *)arg)->path, record, length);
}

void cd_posix_init(struct cd_posix *posix, const char *host, const char *service, const char *path) {
  memset(posix, 0, sizeof *posix);
  posix->port.arg = posix;
  posix->port.now_ms = now_ms;
  posix->port.send = send_datagram;
  posix->port.load = load;
  posix->port.save = save;
  posix->socket.host = host;
  posix->socket.service = service;
  posix->socket.descriptor = -1;
  posix->path = path;
}
