/* A device on mbedTLS (2.28 or 3): PSK-DTLS, one CoAP request, its answer.
 *
 *   cc -O2 -o mbedtls_client mbedtls_client.c -lmbedtls -lmbedx509 -lmbedcrypto
 *   ./mbedtls_client 127.0.0.1 5684 plug-batch-7 706c75672d62617463682d372d6b6579 PLUG0001
 *
 * It prints the answer's code and payload. An optional sixth argument names the
 * cipher suite, such as TLS-PSK-WITH-AES-128-GCM-SHA256; a seventh sets options:
 * `noems` leaves extended master secret out, `mfl512` asks for small records,
 * `cid0` for connection IDs with an empty one of its own, `cid4` for one of four bytes
 * (RFC 9146; mbedTLS 3), `rfc7925` starts with the 9 s of RFC 7925 section 11 for the
 * handshake's timer.
 */
#include "coap.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>
#include <mbedtls/timing.h>
#include <mbedtls/version.h>

/* mbedTLS 2.28 supports only the connection IDs of an obsolete draft. */
#if defined(MBEDTLS_SSL_DTLS_CONNECTION_ID) && MBEDTLS_VERSION_MAJOR >= 3
#define CONNECTION_ID
#endif

static void check(int result, const char *what) {
  if (result < 0) {
    fprintf(stderr, "%s: -0x%04x\n", what, -result);
    exit(1);
  }
}

int main(int argc, char **argv) {
  if (argc < 6 || strlen(argv[5]) > 23) {
    fprintf(stderr, "usage: %s HOST PORT IDENTITY PSK-HEX SN [SUITE [OPTIONS]]\n", argv[0]);
    return 2;
  }
  unsigned char psk[64];
  size_t psk_length = 0;
  for (const char *hex = argv[4]; hex[0] && hex[1] && psk_length < sizeof psk; hex += 2)
    sscanf(hex, "%2hhx", &psk[psk_length++]);

  mbedtls_entropy_context entropy;
  mbedtls_ctr_drbg_context random;
  mbedtls_net_context socket;
  mbedtls_ssl_config config;
  mbedtls_ssl_context ssl;
  mbedtls_timing_delay_context timer;
  mbedtls_entropy_init(&entropy);
  mbedtls_ctr_drbg_init(&random);
  mbedtls_net_init(&socket);
  mbedtls_ssl_config_init(&config);
  mbedtls_ssl_init(&ssl);

  check(mbedtls_ctr_drbg_seed(&random, mbedtls_entropy_func, &entropy, NULL, 0), "seed");
  check(mbedtls_net_connect(&socket, argv[1], argv[2], MBEDTLS_NET_PROTO_UDP), "connect");
  check(mbedtls_ssl_config_defaults(&config, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_DATAGRAM,
                                    MBEDTLS_SSL_PRESET_DEFAULT), "defaults");
  mbedtls_ssl_conf_rng(&config, mbedtls_ctr_drbg_random, &random);
  if (argc > 7 && strstr(argv[7], "rfc7925")) mbedtls_ssl_conf_handshake_timeout(&config, 9000, 60000);
  check(mbedtls_ssl_conf_psk(&config, psk, psk_length, (const unsigned char *)argv[3], strlen(argv[3])), "psk");
  int suites[2] = {0, 0};
  suites[0] = mbedtls_ssl_get_ciphersuite_id(argc > 6 ? argv[6] : "TLS-PSK-WITH-AES-128-CCM-8");
  mbedtls_ssl_conf_ciphersuites(&config, suites);
#if defined(MBEDTLS_SSL_EXTENDED_MASTER_SECRET)
  if (argc > 7 && strstr(argv[7], "noems"))
    mbedtls_ssl_conf_extended_master_secret(&config, MBEDTLS_SSL_EXTENDED_MS_DISABLED);
#endif
#if defined(MBEDTLS_SSL_MAX_FRAGMENT_LENGTH)
  if (argc > 7 && strstr(argv[7], "mfl512")) mbedtls_ssl_conf_max_frag_len(&config, MBEDTLS_SSL_MAX_FRAG_LEN_512);
#endif
#if defined(CONNECTION_ID)
  const char *id = argc > 7 ? strstr(argv[7], "cid") : NULL;
  size_t id_length = id ? (size_t)(id[3] - '0') : 0;
  if (id) check(mbedtls_ssl_conf_cid(&config, id_length, MBEDTLS_SSL_UNEXPECTED_CID_IGNORE), "connection IDs");
#endif
  check(mbedtls_ssl_setup(&ssl, &config), "setup");
#if defined(CONNECTION_ID)
  if (id) check(mbedtls_ssl_set_cid(&ssl, MBEDTLS_SSL_CID_ENABLED, (const unsigned char *)"QRST", id_length), "own ID");
#endif
  mbedtls_ssl_set_timer_cb(&ssl, &timer, mbedtls_timing_set_delay, mbedtls_timing_get_delay);
  mbedtls_ssl_set_bio(&ssl, &socket, mbedtls_net_send, mbedtls_net_recv, mbedtls_net_recv_timeout);

  int result;
  do result = mbedtls_ssl_handshake(&ssl);
  while (result == MBEDTLS_ERR_SSL_WANT_READ || result == MBEDTLS_ERR_SSL_WANT_WRITE);
  check(result, "handshake");
#if defined(CONNECTION_ID)
  int enabled = MBEDTLS_SSL_CID_DISABLED;
  if (id) check(mbedtls_ssl_get_peer_cid(&ssl, &enabled, NULL, NULL), "peer's ID");
  if (id && !enabled) return fprintf(stderr, "no connection ID\n"), 1;
#endif

  struct exchange e;
  unsigned char message[1024];
  exchange_start(&e, argv[5]);
  while (exchange_goes_on(&e)) {
    if (exchange_due(&e)) {
      check(mbedtls_ssl_write(&ssl, e.request, e.request_length), "write");
      exchange_sent(&e);
    }
    /* 0 would mean no time-out. */
    mbedtls_ssl_conf_read_timeout(&config, (uint32_t)exchange_wait(&e) + 1);
    int got = mbedtls_ssl_read(&ssl, message, sizeof message);
    if (got == MBEDTLS_ERR_SSL_TIMEOUT || got == MBEDTLS_ERR_SSL_WANT_READ) continue;
    if (got <= 0 && e.code) break;
    check(got, "read");
    if (got == 0) break;
    if (exchange_receive(&e, message, (size_t)got)) check(mbedtls_ssl_write(&ssl, e.reply, sizeof e.reply), "write");
  }
  result = exchange_result(&e, mbedtls_ssl_get_ciphersuite(&ssl));
  mbedtls_ssl_close_notify(&ssl);
  mbedtls_net_free(&socket);
  mbedtls_ssl_free(&ssl);
  mbedtls_ssl_config_free(&config);
  mbedtls_ctr_drbg_free(&random);
  mbedtls_entropy_free(&entropy);
  return result;
}
