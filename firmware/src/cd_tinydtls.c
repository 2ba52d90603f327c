/* The back end on tinydtls 0.8.6 and later: TLS_PSK_WITH_AES_128_CCM_8. Its clock and its random
 * numbers come from here, so dtls_time.c and dtls_prng*.c stay out of the build.
 *
 * tinydtls has no connection IDs: a session ends when the address changes. */
#if !defined(ARDUINO) /* which compiles every file, and has no tinydtls */

#include "certdist_dtls.h"

#include <string.h>

#include <tinydtls.h>

#include <crypto.h>
#include <dtls.h>
#include <dtls_prng.h>
#include <dtls_time.h>
#include <hmac.h>

/* The one session. */
static struct cd_device *owner;
static dtls_context_t *context;
static session_t server;
static bool initialized, random_failed;

/* tinydtls does not always look at the result, so the session ends when this has failed. */
int dtls_prng(unsigned char *out, size_t length) {
  if (cd_random(out, length) < 0) random_failed = true;
  return !random_failed;
}

void dtls_prng_init(unsigned seed) {
  (void)seed;
}

void dtls_clock_init(void) {}

void dtls_ticks(dtls_tick_t *ticks) {
  *ticks = owner ? (dtls_tick_t)owner->port->now_ms(owner->port->arg) : 0;
}

static int to_network(dtls_context_t *dtls, session_t *session, uint8 *datagram, size_t length) {
  (void)session;
  /* A failure counts as a lost datagram. */
  (void)cd_dtls_send_datagram((struct cd_device *)dtls_get_app_data(dtls), datagram, length);
  return (int)length;
}

static int from_server(dtls_context_t *dtls, session_t *session, uint8 *message, size_t length) {
  (void)session;
  cd_dtls_message((struct cd_device *)dtls_get_app_data(dtls), message, length);
  return 0;
}

static int event(dtls_context_t *dtls, session_t *session, dtls_alert_level_t level, unsigned short code) {
  struct cd_device *device = (struct cd_device *)dtls_get_app_data(dtls);
  (void)session;
  if (code == DTLS_EVENT_CONNECTED) cd_dtls_connected(device);
  else if (code == DTLS_ALERT_CLOSE_NOTIFY || (level == DTLS_ALERT_LEVEL_FATAL && code <= UINT8_MAX))
    cd_dtls_ended(device, (uint8_t)code);
  return 0;
}

static void parameters(dtls_context_t *dtls, session_t *session, dtls_user_parameters_t *out) {
  (void)dtls, (void)session;
  memset(out->cipher_suites, 0, sizeof out->cipher_suites);
  out->cipher_suites[0] = TLS_PSK_WITH_AES_128_CCM_8;
}

static int secret(dtls_context_t *dtls, const session_t *session, dtls_credentials_type_t type,
                  const unsigned char *hint, size_t hint_length, unsigned char *out, size_t room) {
  const struct cd_settings *settings = ((struct cd_device *)dtls_get_app_data(dtls))->settings;
  const void *text = NULL;
  size_t length = 0;
  (void)session, (void)hint, (void)hint_length;
  if (type == DTLS_PSK_KEY) {
    text = settings->key;
    length = settings->key_length;
  } else if (type == DTLS_PSK_IDENTITY) {
    text = settings->identity;
    length = strlen(settings->identity);
  }
  if (length > room) return dtls_alert_fatal_create(DTLS_ALERT_INTERNAL_ERROR);
  if (length > 0) memcpy(out, text, length);
  return (int)length;
}

static void tiny_close(struct cd_device *device) {
  if (owner != device) return;
  if (context) dtls_free_context(context); /* sends close_notify */
  context = NULL;
  owner = NULL;
}

static int tiny_open(struct cd_device *device) {
  static dtls_handler_t handler = {to_network, from_server, event, parameters, secret
#ifdef DTLS_ECC
                                   , NULL, NULL
#endif
  };
  if (!initialized) dtls_init();
  initialized = true;
  random_failed = false;
  owner = device;
  if (context) {
    /* Started again without cd_stop: the old device may no longer exist. */
    dtls_set_app_data(context, device);
    dtls_free_context(context);
    context = NULL;
  }
  dtls_session_init(&server);
#ifndef WITH_LWIP_NO_SOCKET
  /* tinydtls compares addresses; this one stands for the only server. */
  server.addr.sa.sa_family = AF_INET;
#endif
  context = dtls_new_context(device);
  if (!context) return -1;
  dtls_set_handler(context, &handler);
  return dtls_connect(context, &server) < 0 || random_failed ? -1 : 0;
}

static void tiny_receive(struct cd_device *device, uint8_t *datagram, size_t length) {
  if (owner != device || !context) return;
  dtls_handle_message(context, &server, datagram, (int)length);
  /* A failed handshake removes the peer without an event. */
  if (!dtls_get_peer(context, &server) || random_failed) cd_dtls_ended(device, device->alert);
}

static uint32_t tiny_timer(struct cd_device *device) {
  clock_time_t next = 0;
  if (owner != device || !context) return CD_FOREVER;
  dtls_check_retransmit(context, &next);
  if (next == 0) return CD_FOREVER;
  uint32_t now = device->port->now_ms(device->port->arg);
  return (int32_t)(next - now) > 0 ? (uint32_t)(next - now) : 0;
}

static int tiny_send(struct cd_device *device, uint8_t *message, size_t length) {
  if (owner != device || !context) return -1;
  return dtls_write(context, &server, message, length) > 0 ? 0 : -1;
}

static bool tiny_moves(struct cd_device *device) {
  (void)device;
  return false;
}

const struct cd_dtls cd_dtls_tinydtls = {tiny_open,
                                         tiny_receive,
                                         tiny_timer,
                                         tiny_send,
                                         tiny_close,
                                         tiny_moves,
                                         CD_AT_MOST(DTLS_PSK_MAX_CLIENT_IDENTITY_LEN, CD_IDENTITY_MAX),
                                         CD_AT_MOST(DTLS_PSK_MAX_KEY_LEN, CD_KEY_MAX)};

int cd_hmac_tinydtls(const void *key, size_t key_length, const void *text, size_t length, uint8_t mac[32]) {
  dtls_hmac_context_t hmac;
  dtls_hmac_init(&hmac, (const unsigned char *)key, key_length);
  dtls_hmac_update(&hmac, (const unsigned char *)text, length);
  int size = dtls_hmac_finalize(&hmac, mac);
  cd_wipe(&hmac, sizeof hmac);
  return size == 32 ? 0 : -1;
}

#endif
