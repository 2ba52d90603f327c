/* The back end on mbedTLS 2.28 and 3.x: TLS_PSK with CCM_8, CCM and GCM, as far as the
 * configuration has them; with connection IDs where mbedTLS 3 has them (RFC 9146), so that the
 * session continues from a new address. */
#include "certdist_dtls.h"

#include <string.h>

#include <mbedtls/md.h>
#include <mbedtls/ssl.h>
#include <mbedtls/version.h>
#if defined(MBEDTLS_USE_PSA_CRYPTO)
#include <psa/crypto.h>
#endif

/* mbedTLS 2.28 has connection IDs of an obsolete draft only. */
#if defined(MBEDTLS_SSL_DTLS_CONNECTION_ID) && MBEDTLS_VERSION_MAJOR >= 3 && !MBEDTLS_SSL_DTLS_CONNECTION_ID_COMPAT
#define CONNECTION_ID
#endif
#ifndef MBEDTLS_PRIVATE
#define MBEDTLS_PRIVATE(member) member
#endif

/* Records that one datagram may contain. */
enum { RECORDS = 8 };
/* If the timer has passed, mbedTLS repeats its flight before it reads a datagram. */
enum { TRIES = 3 };

/* The one session. */
static struct {
  struct cd_device *owner;
  mbedtls_ssl_config config;
  mbedtls_ssl_context ssl;
  const uint8_t *datagram; /* not read yet */
  size_t length;
  uint32_t started, delay, least; /* the timer, in ms; delay 0: none */
  bool connected, ended;
} session;

static uint32_t now(void) {
  return session.owner->port->now_ms(session.owner->port->arg);
}

static int fill_random(void *arg, unsigned char *out, size_t length) {
  (void)arg;
  return cd_random(out, length) < 0 ? MBEDTLS_ERR_SSL_INTERNAL_ERROR : 0;
}

static int to_network(void *arg, const unsigned char *datagram, size_t length) {
  (void)arg;
  /* A failure counts as a lost datagram. */
  (void)cd_dtls_send_datagram(session.owner, datagram, length);
  return (int)length;
}

static int from_network(void *arg, unsigned char *out, size_t room) {
  size_t length = session.length < room ? session.length : room;
  (void)arg;
  if (length == 0) return MBEDTLS_ERR_SSL_WANT_READ;
  memcpy(out, session.datagram, length);
  session.length = 0;
  return (int)length;
}

static void set_timer(void *arg, uint32_t least, uint32_t delay) {
  (void)arg;
  session.started = now();
  session.least = least;
  session.delay = delay;
}

/* -1: no timer; 0, 1, 2: none, the first, both of its delays have passed. */
static int get_timer(void *arg) {
  (void)arg;
  if (session.delay == 0) return -1;
  uint32_t passed = now() - session.started;
  return passed >= session.delay ? 2 : passed >= session.least;
}

/* Tells the core, once, that a call has ended the session. */
static void examine(int result) {
  if (result >= 0 || result == MBEDTLS_ERR_SSL_WANT_READ || result == MBEDTLS_ERR_SSL_WANT_WRITE || session.ended) return;
  session.ended = true;
  /* No function tells which alert it was. */
  uint8_t alert = result == MBEDTLS_ERR_SSL_FATAL_ALERT_MESSAGE ? session.ssl.MBEDTLS_PRIVATE(in_msg)[1] : 0;
  cd_dtls_ended(session.owner, alert);
}

static void shake_hands(void) {
  int result = mbedtls_ssl_handshake(&session.ssl);
  if (result == 0) {
    session.connected = true;
    cd_dtls_connected(session.owner);
  }
  examine(result);
}

static int configure(const struct cd_settings *settings) {
  static const int suites[] = {MBEDTLS_TLS_PSK_WITH_AES_128_CCM_8, MBEDTLS_TLS_PSK_WITH_AES_128_CCM,
                               MBEDTLS_TLS_PSK_WITH_AES_128_GCM_SHA256, 0};
  mbedtls_ssl_config *config = &session.config;
  if (mbedtls_ssl_config_defaults(config, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_DATAGRAM,
                                  MBEDTLS_SSL_PRESET_DEFAULT) != 0)
    return -1;
  mbedtls_ssl_conf_rng(config, fill_random, NULL);
  mbedtls_ssl_conf_min_version(config, MBEDTLS_SSL_MAJOR_VERSION_3, MBEDTLS_SSL_MINOR_VERSION_3);
  mbedtls_ssl_conf_max_version(config, MBEDTLS_SSL_MAJOR_VERSION_3, MBEDTLS_SSL_MINOR_VERSION_3);
  mbedtls_ssl_conf_ciphersuites(config, suites);
#if defined(MBEDTLS_SSL_MAX_FRAGMENT_LENGTH) && MBEDTLS_SSL_IN_CONTENT_LEN < 1024 && \
    MBEDTLS_SSL_IN_CONTENT_LEN >= 512 && MBEDTLS_SSL_OUT_CONTENT_LEN >= 512
  if (mbedtls_ssl_conf_max_frag_len(config, MBEDTLS_SSL_MAX_FRAG_LEN_512) != 0) return -1;
#endif
#ifdef CONNECTION_ID
  if (mbedtls_ssl_conf_cid(config, 0, MBEDTLS_SSL_UNEXPECTED_CID_IGNORE) != 0) return -1;
#endif
  return mbedtls_ssl_conf_psk(config, settings->key, settings->key_length, (const unsigned char *)settings->identity,
                              strlen(settings->identity));
}

static void mbed_close(struct cd_device *device) {
  if (session.owner != device) return;
  if (session.connected && !session.ended) (void)mbedtls_ssl_close_notify(&session.ssl);
  mbedtls_ssl_free(&session.ssl);
  mbedtls_ssl_config_free(&session.config);
  session.owner = NULL;
}

static int mbed_open(struct cd_device *device) {
  if (session.owner) {
    /* Started again without cd_stop: the old device may no longer exist. */
    session.owner = device;
    mbed_close(device);
  }
  memset(&session, 0, sizeof session);
  session.owner = device;
  mbedtls_ssl_config_init(&session.config);
  mbedtls_ssl_init(&session.ssl);
#if defined(MBEDTLS_USE_PSA_CRYPTO)
  if (psa_crypto_init() != PSA_SUCCESS) return -1;
#endif
  if (configure(device->settings) != 0 || mbedtls_ssl_setup(&session.ssl, &session.config) != 0) return -1;
#ifdef CONNECTION_ID
  /* The device's own ID is empty: it has one session. */
  if (mbedtls_ssl_set_cid(&session.ssl, MBEDTLS_SSL_CID_ENABLED, NULL, 0) != 0) return -1;
#endif
  mbedtls_ssl_set_timer_cb(&session.ssl, NULL, set_timer, get_timer);
  mbedtls_ssl_set_bio(&session.ssl, NULL, to_network, from_network, NULL);
  shake_hands();
  return 0;
}

static void mbed_receive(struct cd_device *device, uint8_t *datagram, size_t length) {
  if (session.owner != device || session.ended) return;
  session.datagram = datagram;
  session.length = length;
  for (int i = 0; i < TRIES && session.length > 0 && !session.connected && !session.ended; i++) shake_hands();
  /* mbedTLS copies the datagram before it hands a message out, so its memory is free for the
   * message, which is shorter. */
  for (int record = 0; session.connected && !session.ended && record < RECORDS; record++) {
    int result = mbedtls_ssl_read(&session.ssl, datagram, length);
    examine(result);
    if (result > 0) cd_dtls_message(device, datagram, (size_t)result);
    else if (result < 0) break;
  }
  session.datagram = NULL;
  session.length = 0;
}

static uint32_t mbed_timer(struct cd_device *device) {
  if (session.owner != device || session.ended || session.connected) return CD_FOREVER;
  if (get_timer(NULL) == 2) shake_hands();
  if (session.delay == 0) return CD_FOREVER;
  uint32_t passed = now() - session.started;
  return passed < session.delay ? session.delay - passed : 0;
}

static int mbed_send(struct cd_device *device, uint8_t *message, size_t length) {
  if (session.owner != device || !session.connected || session.ended) return -1;
  int result = mbedtls_ssl_write(&session.ssl, message, length);
  examine(result);
  return result < 0 ? -1 : 0;
}

static bool mbed_moves(struct cd_device *device) {
#ifdef CONNECTION_ID
  int enabled = MBEDTLS_SSL_CID_DISABLED;
  return session.owner == device && mbedtls_ssl_get_peer_cid(&session.ssl, &enabled, NULL, NULL) == 0 &&
         enabled == MBEDTLS_SSL_CID_ENABLED;
#else
  (void)device;
  return false;
#endif
}

const struct cd_dtls cd_dtls_mbedtls = {mbed_open,  mbed_receive, mbed_timer,      mbed_send,
                                        mbed_close, mbed_moves,   CD_IDENTITY_MAX, CD_AT_MOST(MBEDTLS_PSK_MAX_LEN, CD_KEY_MAX)};

int cd_hmac_mbedtls(const void *key, size_t key_length, const void *text, size_t length, uint8_t mac[32]) {
  const mbedtls_md_info_t *sha256 = mbedtls_md_info_from_type(MBEDTLS_MD_SHA256);
  if (!sha256) return -1;
  int result = mbedtls_md_hmac(sha256, (const unsigned char *)key, key_length, (const unsigned char *)text, length, mac);
  return result == 0 ? 0 : -1;
}
