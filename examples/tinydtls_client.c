/* A device on tinydtls (0.8.6 and later): PSK-DTLS 1.2, one CoAP request,
 * its answer.
 *
 *   cc -O2 -Itinydtls -o tinydtls_client tinydtls_client.c libtinydtls.a
 *   ./tinydtls_client 127.0.0.1 5684 plug-batch-7 706c75672d62617463682d372d6b6579 PLUG0001 CCM_8
 *
 * It prints the answer's code and payload. The sixth argument is CCM_8 or CCM.
 */
#include "tinydtls.h"

#include "dtls.h"

#include "coap.h"

#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE_SECONDS = 300, TICK_MILLIS = 100 };

struct device {
  int fd, connected;
  struct exchange exchange;
  const char *identity, *suite;
  unsigned char key[64];
  size_t key_length;
};

static int to_network(dtls_context_t *dtls, session_t *session, uint8 *data, size_t length) {
  (void)session;
  return (int)send(((struct device *)dtls_get_app_data(dtls))->fd, data, length, 0);
}

static int from_server(dtls_context_t *dtls, session_t *session, uint8 *data, size_t length) {
  struct exchange *exchange = &((struct device *)dtls_get_app_data(dtls))->exchange;
  if (exchange_receive(exchange, data, length)) dtls_write(dtls, session, exchange->reply, sizeof exchange->reply);
  return 0;
}

static int event(dtls_context_t *dtls, session_t *session, dtls_alert_level_t level, unsigned short code) {
  (void)session, (void)level;
  if (code == DTLS_EVENT_CONNECTED) ((struct device *)dtls_get_app_data(dtls))->connected = 1;
  return 0;
}

static void parameters(dtls_context_t *dtls, session_t *session, dtls_user_parameters_t *out) {
  const struct device *device = dtls_get_app_data(dtls);
  (void)session;
  memset(out->cipher_suites, 0, sizeof out->cipher_suites);
  out->cipher_suites[0] = strcmp(device->suite, "CCM") ? TLS_PSK_WITH_AES_128_CCM_8 : TLS_PSK_WITH_AES_128_CCM;
}

static int key(dtls_context_t *dtls, const session_t *session, dtls_credentials_type_t type, const unsigned char *hint,
               size_t hint_length, unsigned char *out, size_t room) {
  const struct device *device = dtls_get_app_data(dtls);
  const void *what = type == DTLS_PSK_KEY ? (const void *)device->key : device->identity;
  size_t length = type == DTLS_PSK_KEY ? device->key_length : type == DTLS_PSK_IDENTITY ? strlen(device->identity) : 0;
  (void)session, (void)hint, (void)hint_length;
  if (length > room) return dtls_alert_fatal_create(DTLS_ALERT_INTERNAL_ERROR);
  memcpy(out, what, length);
  return (int)length;
}

int main(int argc, char **argv) {
  if (argc < 7 || strlen(argv[5]) > 23) {
    fprintf(stderr, "usage: %s HOST PORT IDENTITY PSK-HEX SN CCM_8|CCM\n", argv[0]);
    return 2;
  }
  struct device device = {.identity = argv[3], .suite = argv[6]};
  for (const char *hex = argv[4]; hex[0] && hex[1] && device.key_length < sizeof device.key; hex += 2)
    sscanf(hex, "%2hhx", &device.key[device.key_length++]);

  session_t server;
  dtls_session_init(&server);
  server.addr.sin.sin_family = AF_INET;
  server.addr.sin.sin_port = htons((unsigned short)atoi(argv[2]));
  inet_pton(AF_INET, argv[1], &server.addr.sin.sin_addr);
  server.size = sizeof server.addr.sin;
  device.fd = socket(AF_INET, SOCK_DGRAM, 0);
  if (device.fd < 0 || connect(device.fd, &server.addr.sa, server.size)) return perror("connect"), 1;

  static dtls_handler_t handler = {.write = to_network,
                                   .read = from_server,
                                   .event = event,
                                   .get_user_parameters = parameters,
                                   .get_psk_info = key};
  dtls_init();
  dtls_context_t *dtls = dtls_new_context(&device);
  dtls_set_handler(dtls, &handler);
  dtls_connect(dtls, &server);

  unsigned char datagram[2048];
  time_t started = time(NULL);
  exchange_start(&device.exchange, argv[5]);
  while (exchange_goes_on(&device.exchange) && time(NULL) - started < PATIENCE_SECONDS) {
    clock_time_t next = 0;
    dtls_check_retransmit(dtls, &next);
    if (device.connected && exchange_due(&device.exchange)) {
      dtls_write(dtls, &server, device.exchange.request, device.exchange.request_length);
      exchange_sent(&device.exchange);
    }
    struct pollfd readable = {.fd = device.fd, .events = POLLIN};
    if (poll(&readable, 1, TICK_MILLIS) > 0) {
      ssize_t got = recv(device.fd, datagram, sizeof datagram, 0);
      if (got > 0) dtls_handle_message(dtls, &server, datagram, (int)got);
    }
  }
  int result = exchange_result(&device.exchange, device.suite);
  dtls_free_context(dtls); /* says goodbye */
  close(device.fd);
  return result;
}
