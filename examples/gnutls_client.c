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
#include <gnutls/dtls.h>
#include <gnutls/gnutls.h>

#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { HANDSHAKE_MILLIS = 300000, RETRANSMIT_MILLIS = 1000, TRIES = 10, WAIT_MILLIS = 3000 };

static int check(int result, const char *what) {
  if (result < 0) {
    fprintf(stderr, "%s: %s\n", what, gnutls_strerror(result));
    exit(1);
  }
  return result;
}

/* GET /cert with {"sn": sn} as CBOR: a confirmable message of token 0xc3. */
static size_t request(unsigned char *out, const char *sn) {
  size_t length = strlen(sn);
  memcpy(out, "\x41\x01\x12\x34\xc3\xb4" "cert\x11\x3c\xff\xa1\x62sn", 17);
  out[17] = (unsigned char)(0x60 | length); /* up to 23 characters */
  memcpy(out + 18, sn, length);
  return 18 + length;
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

  unsigned char message[64], answer[1024];
  size_t length = request(message, argv[5]);
  int code = 0;
  ssize_t got = 0, payload;
  /* RFC 7252 section 4.2: sent again until it is answered. */
  for (int tries = 0; tries < TRIES && code == 0; tries++) {
    check((int)gnutls_record_send(session, message, length), "send");
    gnutls_record_set_timeout(session, WAIT_MILLIS);
    got = gnutls_record_recv(session, answer, sizeof answer);
    if (got == GNUTLS_E_TIMEDOUT || got == GNUTLS_E_AGAIN) continue;
    check((int)got, "receive");
    if (got >= 4) code = answer[1];
  }
  if (code == 0) return fprintf(stderr, "no answer\n"), 1;
  for (payload = 4; payload < got && answer[payload] != 0xff; payload++) {}
  char *description = gnutls_session_get_desc(session);
  printf("%s %d.%02d ", description, code >> 5, code & 31);
  fwrite(answer + payload + 1, 1, payload < got ? (size_t)(got - payload - 1) : 0, stdout);
  putchar('\n');
  gnutls_free(description);
  gnutls_bye(session, GNUTLS_SHUT_WR);
  gnutls_deinit(session);
  gnutls_psk_free_client_credentials(credentials);
  return code >> 5 == 2 ? 0 : 1;
}
