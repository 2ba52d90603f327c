#include "cd_socket.h"

#if defined(__ZEPHYR__)
#include <zephyr/net/socket.h>
#elif defined(CD_LWIP)
#include <lwip/netdb.h>
#include <lwip/sockets.h>
#else
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#endif

#include <string.h>

/* The longest datagram that is received: a handshake message or an answer, with room to spare. */
#ifndef CD_DATAGRAM_MAX
#define CD_DATAGRAM_MAX 1400
#endif
/* The longest single wait, so that patience is looked at now and then. */
enum { LONGEST_POLL_MS = 60000 };

int cd_socket_open(struct cd_socket *socket_) {
  struct addrinfo hints, *found = NULL;
  cd_socket_close(socket_);
  memset(&hints, 0, sizeof hints);
  hints.ai_socktype = SOCK_DGRAM;
  if (getaddrinfo(socket_->host, socket_->service, &hints, &found) != 0) return -1;
  for (struct addrinfo *address = found; address && socket_->descriptor < 0; address = address->ai_next) {
    int descriptor = socket(address->ai_family, address->ai_socktype, address->ai_protocol);
    if (descriptor < 0) continue;
    if (connect(descriptor, address->ai_addr, address->ai_addrlen) == 0) socket_->descriptor = descriptor;
    else close(descriptor);
  }
  freeaddrinfo(found);
  return socket_->descriptor < 0 ? -1 : 0;
}

void cd_socket_close(struct cd_socket *socket_) {
  if (socket_->descriptor >= 0) close(socket_->descriptor);
  socket_->descriptor = -1;
}

int cd_socket_send(void *arg, const void *datagram, size_t length) {
  struct cd_socket *socket_ = (struct cd_socket *)arg;
  if (socket_->descriptor < 0 && cd_socket_open(socket_) < 0) return -1;
  return send(socket_->descriptor, datagram, length, 0) < 0 ? -1 : 0;
}

/* Returns whether a session begins at the next poll. Before that, the last session ends, and its
 * last datagram must leave through the socket that the session has had. */
static bool begins(const struct cd_device *device) {
  bool rests = device->state == CD_WAITING || device->state == CD_STOPPED || device->state == CD_REJECTED;
  return rests && (int32_t)(device->wake_at - device->port->now_ms(device->port->arg)) <= 0;
}

enum cd_state cd_socket_run(struct cd_socket *socket_, struct cd_device *device, uint32_t patience_ms) {
  uint8_t datagram[CD_DATAGRAM_MAX];
  const struct cd_port *port = device->port;
  uint32_t last = port->now_ms(port->arg), passed = 0;
  for (;;) {
    /* A server that has moved is found by its name, and a new port gets past a stale NAT entry. */
    if (begins(device)) cd_socket_close(socket_);
    enum cd_state state = cd_poll(device);
    uint32_t wait = cd_wait_ms(device);
    if (wait == CD_FOREVER || (patience_ms != CD_FOREVER && passed >= patience_ms)) return state;
    if (patience_ms != CD_FOREVER && wait > patience_ms - passed) wait = patience_ms - passed;
    if (wait > LONGEST_POLL_MS) wait = LONGEST_POLL_MS;
    struct pollfd readable = {socket_->descriptor, POLLIN, 0};
    /* An error, such as a refused port, is read and thereby cleared; to the device it is silence. */
    if (poll(&readable, 1, (int)wait) > 0 && readable.revents != 0) {
      long length = (long)recv(socket_->descriptor, datagram, sizeof datagram, 0);
      if (length > 0) cd_receive(device, datagram, (size_t)length);
    }
    uint32_t now = port->now_ms(port->arg);
    if (passed < CD_FOREVER - (now - last)) passed += now - last;
    last = now;
  }
}
