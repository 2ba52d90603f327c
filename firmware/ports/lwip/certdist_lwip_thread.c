#include "certdist_lwip_thread.h"

#include <lwip/sys.h>

static uint32_t now_ms(void *arg) {
  (void)arg;
  return sys_now();
}

static int send_datagram(void *arg, const void *datagram, size_t length) {
  return cd_socket_send(&((struct cd_lwip_thread *)arg)->socket, datagram, length);
}

static int load(void *arg, void *record, size_t room) {
  const struct cd_lwip_thread *thread = (const struct cd_lwip_thread *)arg;
  return thread->load(thread->store, record, room);
}

static int save(void *arg, const void *record, size_t length) {
  const struct cd_lwip_thread *thread = (const struct cd_lwip_thread *)arg;
  return thread->save(thread->store, record, length);
}

void cd_lwip_thread_init(struct cd_lwip_thread *thread, const char *host, const char *service) {
  thread->port.arg = thread;
  thread->port.now_ms = now_ms;
  thread->port.send = send_datagram;
  thread->port.load = load;
  thread->port.save = save;
  thread->socket.host = host;
  thread->socket.service = service;
  thread->socket.descriptor = -1;
}
