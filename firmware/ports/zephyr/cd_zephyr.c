#include "cd_zephyr.h"

#include <zephyr/kernel.h>
#include <zephyr/random/random.h>
#include <zephyr/settings/settings.h>

#define RECORD "certdist/record"

/* The kernel has this function only if the chip's driver or a seeded generator backs it. */
int cd_random(void *out, size_t length) {
  return sys_csrand_get(out, length);
}

static uint32_t now_ms(void *arg) {
  (void)arg;
  return k_uptime_get_32();
}

struct reading {
  void *record;
  size_t room;
  int length;
};

static int read_record(const char *name, size_t length, settings_read_cb read, void *read_arg, void *arg) {
  struct reading *reading = (struct reading *)arg;
  (void)name;
  reading->length = length <= reading->room ? (int)read(read_arg, reading->record, length) : -1;
  return 0;
}

static int load(void *arg, void *record, size_t room) {
  struct reading reading = {record, room, 0};
  (void)arg;
  int result = settings_load_subtree_direct(RECORD, read_record, &reading);
  return result < 0 ? result : reading.length;
}

static int save(void *arg, const void *record, size_t length) {
  (void)arg;
  return length > 0 ? settings_save_one(RECORD, record, length) : settings_delete(RECORD);
}

struct cd_port cd_zephyr_port(struct cd_socket *socket) {
  struct cd_port port = {socket, now_ms, cd_socket_send, load, save};
  return port;
}
