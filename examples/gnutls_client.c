/* A device on GnuTLS (3.7): PSK-DTLS 1.2, one CoAP request, its answer.
 *
 *   cc -O2 -o gnutls_client gnutls_client.c -lgnutls
 *   ./gnutls_client 127.0.0.1 5684 plug-batch-7 706c75672d62617463682d372d6b6579 PLUG0001 AES-128-CCM-8
 *
 * It prints the answer's code and payload. The sixth argument is the cipher as in
 * a GnuTLS priority string; a seventh sets options: `noems` leaves extended master
 * secret out, `rsl512` asks for records of at most 512 bytes (record_size_limit,
 * RFC 8449).
 */
#include "coap.h"

#include <gnutls/dtls.h>
#include <gnutls/gnutls.h>

#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { HANDSHAKE_MILLIS = 300000, RETRANSMIT_MILLIS = 1000 };

static int check(int result, const char *what) {
  if (result < 0) {
    fprintf(stderr, "%s: %s\n", what, gnutls_strerror(result));
    exit(1);
  }
  return result;
}

int main(int argc, char **argv) {
  if (argc < 7 || strlen(argv[5]) > 23) {
    fprintf(stderr, "usage: %s HOST PORT IDENTITY PSK-HEX SN CIPHER [OPTIONS]\n", argv[0]);
    return 2;
  }
  const char *options = argc > 7 ? argv[7] : "";
  struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[2]))};
  inet_pton(AF_INET, argv[1], &server.sin_addr);
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof server)) return perror("connect"), 1;

  gnutls_session_t session;
  gnutls_psk_client_credentials_t credentials;
  gnutls_datum_t key = {(unsigned char *)argv[4], (unsigned)strlen(argv[4])};
  char priorities[256];
  snprintf(priorities, sizeof priorities, "NONE:+VERS-DTLS1.2:+PSK:+%s:+AEAD:+COMP-NULL:+SIGN-ALL:+GROUP-ALL%s", argv[6],
           strstr(options, "noems") ? ":%NO_SESSION_HASH" : "");
  check(gnutls_init(&session, GNUTLS_CLIENT | GNUTLS_DATAGRAM), "init");
  check(gnutls_priority_set_direct(session, priorities, NULL), "priorities");
  check(gnutls_psk_allocate_client_credentials(&credentials), "credentials");
  check(gnutls_psk_set_client_credentials(credentials, argv[3], &key, GNUTLS_PSK_KEY_HEX), "key");
  check(gnutls_credentials_set(session, GNUTLS_CRD_PSK, credentials), "credentials");
  if (strstr(options, "rsl512")) check((int)gnutls_record_set_max_recv_size(session, 512), "record size limit");
  gnutls_transport_set_int(session, fd);
  gnutls_dtls_set_timeouts(session, RETRANSMIT_MILLIS, HANDSHAKE_MILLIS);
  gnutls_handshake_set_timeout(session, HANDSHAKE_MILLIS);
  int result;
  do result = gnutls_handshake(session);
  while (result < 0 && !gnutls_error_is_fatal(result));
  check(result, "handshake");

  struct exchange e;
  unsigned char message[1024];
  exchange_start(&e, argv[5]);
  while (exchange_goes_on(&e)) {
    if (exchange_due(&e)) {
      check((int)gnutls_record_send(session, e.request, e.request_length), "send");
      exchange_sent(&e);
    }
    /* 0 would mean no time-out. */
    gnutls_record_set_timeout(session, (unsigned)exchange_wait(&e) + 1);
    ssize_t got = gnutls_record_recv(session, message, sizeof message);
    if (got == GNUTLS_E_TIMEDOUT || got == GNUTLS_E_AGAIN || got == GNUTLS_E_INTERRUPTED) continue;
    if (got <= 0 && e.code) break;
    check((int)got, "receive");
    if (got == 0) break;
    if (exchange_receive(&e, message, (size_t)got)) check((int)gnutls_record_send(session, e.reply, sizeof e.reply), "send");
  }
  char *description = gnutls_session_get_desc(session);
  result = exchange_result(&e, description);
  gnutls_free(description);
  gnutls_bye(session, GNUTLS_SHUT_WR);
  gnutls_deinit(session);
  gnutls_psk_free_client_credentials(credentials);
  return result;
}
