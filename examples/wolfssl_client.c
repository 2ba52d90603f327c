/* A device on wolfSSL (5.5 and later): PSK-DTLS 1.2 with or without ECDHE, one
 * CoAP request, its answer.
 *
 *   cc -O2 -o wolfssl_client wolfssl_client.c -lwolfssl
 *   ./wolfssl_client 127.0.0.1 5684 plug-batch-7 706c75672d62617463682d372d6b6579 PLUG0001 \
 *       ECDHE-PSK-AES128-GCM-SHA256
 *
 * It prints the answer's code and payload. The last argument sets options: a group (`x25519`, with
 * which 5.5 fails, or `p256`), `mfl512` for max_fragment_length (RFC 6066), `cid0` for connection IDs
 * with an empty one of its own, `cid4` for one of four bytes (RFC 9146; wolfSSL 5.7.4 and later, built
 * with WOLFSSL_DTLS_CID), `rfc7925` for a handshake timer that begins with the 9 s of RFC 7925 section 11.
 */
#ifdef WOLFSSL_USER_SETTINGS
#include <wolfssl/wolfcrypt/settings.h>
#else
#include <wolfssl/options.h>
#endif
#include <wolfssl/ssl.h>

#include "coap.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static const char *identity_text;
static unsigned char key[64];
static unsigned key_length;

static unsigned psk(WOLFSSL *ssl, const char *hint, char *identity, unsigned identity_max, unsigned char *out,
                    unsigned out_max) {
  (void)ssl, (void)hint;
  if (key_length > out_max) return 0;
  snprintf(identity, identity_max, "%s", identity_text);
  memcpy(out, key, key_length);
  return key_length;
}

int main(int argc, char **argv) {
  if (argc < 7 || strlen(argv[5]) > 23) {
    fprintf(stderr, "usage: %s HOST PORT IDENTITY PSK-HEX SN SUITE [OPTIONS]\n", argv[0]);
    return 2;
  }
  const char *options = argc > 7 ? argv[7] : "";
  identity_text = argv[3];
  for (const char *hex = argv[4]; hex[0] && hex[1] && key_length < sizeof key; hex += 2)
    sscanf(hex, "%2hhx", &key[key_length++]);

  struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[2]))};
  inet_pton(AF_INET, argv[1], &server.sin_addr);
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof server)) return perror("connect"), 1;

  wolfSSL_Init();
  WOLFSSL_CTX *context = wolfSSL_CTX_new(wolfDTLSv1_2_client_method());
  wolfSSL_CTX_set_psk_client_callback(context, psk);
  if (wolfSSL_CTX_set_cipher_list(context, argv[6]) != WOLFSSL_SUCCESS) return fprintf(stderr, "no such suite\n"), 2;
  WOLFSSL *ssl = wolfSSL_new(context);
  if (strstr(options, "x25519")) wolfSSL_UseSupportedCurve(ssl, WOLFSSL_ECC_X25519);
  if (strstr(options, "p256")) wolfSSL_UseSupportedCurve(ssl, WOLFSSL_ECC_SECP256R1);
  if (strstr(options, "mfl512")) wolfSSL_UseMaxFragment(ssl, WOLFSSL_MFL_2_9);
#ifdef WOLFSSL_DTLS_CID
  if (strstr(options, "cid")) {
    wolfSSL_dtls_cid_use(ssl);
    if (strstr(options, "cid4")) wolfSSL_dtls_cid_set(ssl, (unsigned char *)"\x51\x52\x53\x54", 4);
  }
#endif
  wolfSSL_dtls_set_peer(ssl, &server, sizeof server);
  wolfSSL_set_fd(ssl, fd);
  wolfSSL_dtls_set_timeout_init(ssl, strstr(options, "rfc7925") ? 9 : 1);
  if (wolfSSL_connect(ssl) != WOLFSSL_SUCCESS) {
    char text[WOLFSSL_MAX_ERROR_SZ];
    return fprintf(stderr, "handshake: %s\n", wolfSSL_ERR_error_string(wolfSSL_get_error(ssl, 0), text)), 1;
  }

#ifdef WOLFSSL_DTLS_CID
  unsigned id = 0;
  if (strstr(options, "cid") && (wolfSSL_dtls_cid_get_tx_size(ssl, &id) != WOLFSSL_SUCCESS || id == 0))
    return fprintf(stderr, "no connection ID\n"), 1;
#endif

  struct exchange e;
  unsigned char message[1024];
  /* With a blocking socket, wolfSSL would block forever after the handshake. */
  fcntl(fd, F_SETFL, O_NONBLOCK);
  wolfSSL_dtls_set_using_nonblock(ssl, 1);
  exchange_start(&e, argv[5]);
  while (exchange_goes_on(&e)) {
    if (exchange_due(&e)) {
      wolfSSL_write(ssl, e.request, (int)e.request_length);
      exchange_sent(&e);
    }
    int got = wolfSSL_read(ssl, message, sizeof message);
    if (got > 0) {
      if (exchange_receive(&e, message, (size_t)got)) wolfSSL_write(ssl, e.reply, sizeof e.reply);
      continue;
    }
    if (wolfSSL_get_error(ssl, got) != WOLFSSL_ERROR_WANT_READ) break;
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    poll(&readable, 1, (int)exchange_wait(&e));
  }
  int result = exchange_result(&e, wolfSSL_get_cipher_name(ssl));
  wolfSSL_shutdown(ssl);
  wolfSSL_free(ssl);
  wolfSSL_CTX_free(context);
  return result;
}
