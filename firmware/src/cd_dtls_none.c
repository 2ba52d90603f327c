/* No DTLS of its own: the socket has it, as Zephyr's, or a test needs none. */
#include "certdist_dtls.h"

static int none_open(struct cd_device *device) {
  cd_dtls_connected(device);
  return 0;
}

static void none_receive(struct cd_device *device, uint8_t *datagram, size_t length) {
  cd_dtls_message(device, datagram, length);
}

static uint32_t none_timer(struct cd_device *device) {
  (void)device;
  return CD_FOREVER;
}

static int none_send(struct cd_device *device, uint8_t *message, size_t length) {
  return cd_dtls_send_datagram(device, message, length);
}

static void none_close(struct cd_device *device) {
  (void)device;
}

static bool none_moves(struct cd_device *device) {
  (void)device;
  return false;
}

const struct cd_dtls cd_dtls_none = {none_open, none_receive, none_timer, none_send, none_close, none_moves,
                                     CD_IDENTITY_MAX, CD_KEY_MAX};
