/* The MQTT sign-in of IoT Platform: host, client ID, user name, and a password that is an
 * HMAC-SHA256 with the device secret. HMAC comes from the DTLS stack's library. */
#include "cd_internal.h"

#include <string.h>

enum { PORT_PLAIN = 1883, PORT_TLS = 8883, DIGITS = 21, DIGEST = 32 };

/* A text that grows; `full` once it did not fit. */
struct text {
  char *start;
  size_t room, length;
  bool full;
};

static void add(struct text *text, const char *more) {
  size_t length = strlen(more);
  if (text->full || length >= text->room - text->length) {
    text->full = true;
    return;
  }
  memcpy(text->start + text->length, more, length + 1);
  text->length += length;
}

static void add_all(struct text *text, const char *const *parts, size_t count) {
  for (size_t i = 0; i < count; i++) add(text, parts[i]);
}

/* Writes a number in decimal; the result points into `digits`. */
static const char *decimal(uint64_t number, char digits[DIGITS]) {
  char *at = digits + DIGITS - 1;
  *at = 0;
  do *--at = (char)('0' + number % 10);
  while (number /= 10);
  return at;
}

/* Separates "HOST:PORT". Returns 0, or -1. */
static int set_port(struct cd_sign_in *out, bool tls) {
  char *colon = strchr(out->host, ':');
  out->port = tls ? PORT_TLS : PORT_PLAIN;
  if (colon) {
    uint32_t port = 0;
    for (const char *digit = colon + 1; *digit; digit++) {
      if (*digit < '0' || *digit > '9' || port > 6553) return -1;
      port = port * 10 + (uint32_t)(*digit - '0');
    }
    if (port < 1 || port > UINT16_MAX) return -1;
    out->port = (uint16_t)port;
    *colon = 0;
  }
  return out->host[0] ? 0 : -1;
}

int cd_sign_in(const struct cd_certificate *certificate, const char *where, bool tls, uint64_t now_unix_ms,
               cd_hmac *hmac, struct cd_sign_in *out) {
  const char *name = certificate->device_name, *product = certificate->product_key;
  char digits[DIGITS], signed_text[sizeof "clientIddeviceNameproductKeytimestamp" + 2 * CD_DEVICE_NAME_ROOM +
                                   CD_PRODUCT_KEY_ROOM + DIGITS];
  const char *time = now_unix_ms ? decimal(now_unix_ms, digits) : "";
  struct text host = {out->host, sizeof out->host, 0, false};
  struct text client_id = {out->client_id, sizeof out->client_id, 0, false};
  struct text user_name = {out->user_name, sizeof out->user_name, 0, false};
  struct text to_sign = {signed_text, sizeof signed_text, 0, false};
  memset(out, 0, sizeof *out);
  /* '&', '|' and ',' separate the fields. */
  if (!cd_is_name(name, CD_DEVICE_NAME_ROOM - 1) || !cd_is_name(product, CD_PRODUCT_KEY_ROOM - 1)) return -1;
  if (certificate->host[0]) {
    add(&host, certificate->host);
  } else if (where && strchr(where, '.')) {
    add(&host, where);
  } else if (where && where[0]) {
    const char *const parts[] = {product, ".iot-as-mqtt.", where, ".aliyuncs.com"};
    add_all(&host, parts, sizeof parts / sizeof parts[0]);
  }
  const char *const id_parts[] = {name,  tls ? "|securemode=2,signmethod=hmacsha256" : "|securemode=3,signmethod=hmacsha256",
                                  time[0] ? ",timestamp=" : "", time, "|"};
  add_all(&client_id, id_parts, sizeof id_parts / sizeof id_parts[0]);
  const char *const user_parts[] = {name, "&", product};
  add_all(&user_name, user_parts, sizeof user_parts / sizeof user_parts[0]);
  /* The fields by name, in alphabetical order. */
  const char *const sign_parts[] = {"clientId", name, "deviceName", name, "productKey", product, time[0] ? "timestamp" : "", time};
  add_all(&to_sign, sign_parts, sizeof sign_parts / sizeof sign_parts[0]);

  uint8_t mac[DIGEST];
  const char *secret = certificate->device_secret;
  bool failed = host.full || client_id.full || user_name.full || to_sign.full || set_port(out, tls) < 0 ||
                hmac(secret, strlen(secret), signed_text, to_sign.length, mac) < 0;
  if (failed) {
    memset(out, 0, sizeof *out);
    return -1;
  }
  for (int i = 0; i < DIGEST; i++) {
    out->password[2 * i] = "0123456789abcdef"[mac[i] >> 4];
    out->password[2 * i + 1] = "0123456789abcdef"[mac[i] & 15];
  }
  cd_wipe(mac, sizeof mac);
  return 0;
}
