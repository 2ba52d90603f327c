/* The MQTT sign-in of IoT Platform: host, client ID, user name, and a password that is an
 * HMAC-SHA256 with the device secret. HMAC comes from the DTLS stack's library. */
#include "cd_internal.h"

#include <string.h>

enum { PORT_PLAIN = 1883, PORT_TLS = 8883, DIGITS = 21, DIGEST = 32 };

/* Writes a pattern with "$0", "$1", ... replaced by values. Returns whether there was room. */
static bool fill(char *out, size_t room, const char *pattern, const char *const *values) {
  for (; *pattern; pattern++) {
    const char *from = pattern;
    size_t length = 1;
    if (*pattern == '$') {
      from = values[*++pattern - '0'];
      length = strlen(from);
    }
    if (length >= room) return false;
    memcpy(out, from, length);
    out += length;
    room -= length;
  }
  *out = 0;
  return true;
}

/* Writes a number in decimal; the result points into `digits`. The division is by hand, because a
 * small processor has none of 64 bits. */
static const char *decimal(uint64_t number, char digits[DIGITS]) {
  uint16_t parts[4];
  char *at = digits + DIGITS - 1;
  uint32_t any = 0;
  for (int i = 0; i < 4; i++) parts[i] = (uint16_t)(number >> (48 - 16 * i));
  *at = 0;
  do {
    uint32_t rest = any = 0;
    for (int i = 0; i < 4; i++) {
      rest = rest << 16 | parts[i];
      parts[i] = (uint16_t)(rest / 10);
      any |= parts[i];
      rest %= 10;
    }
    *--at = (char)('0' + rest);
  } while (any);
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
  char digits[DIGITS], signed_text[sizeof "clientIddeviceNameproductKeytimestamp" + 2 * CD_DEVICE_NAME_ROOM +
                                   CD_PRODUCT_KEY_ROOM + DIGITS];
  uint8_t mac[DIGEST];
  const char *secret = certificate->device_secret, *host = "$3";
  const char *values[] = {certificate->device_name, certificate->product_key, decimal(now_unix_ms, digits),
                          certificate->host, tls ? "2" : "3"};
  memset(out, 0, sizeof *out);
  /* '&', '|' and ',' separate the fields. */
  if (!cd_is_name(values[0], CD_DEVICE_NAME_ROOM - 1) || !cd_is_name(values[1], CD_PRODUCT_KEY_ROOM - 1)) return -1;
  if (!certificate->host[0]) {
    values[3] = where ? where : "";
    if (values[3][0] && !strchr(values[3], '.')) host = "$1.iot-as-mqtt.$3.aliyuncs.com";
  }
  const char *client_id = "$0|securemode=$4,signmethod=hmacsha256,timestamp=$2|";
  /* The fields by name, in alphabetical order. */
  const char *to_sign = "clientId$0deviceName$0productKey$1timestamp$2";
  if (now_unix_ms == 0) {
    client_id = "$0|securemode=$4,signmethod=hmacsha256|";
    to_sign = "clientId$0deviceName$0productKey$1";
  }
  if (fill(out->host, sizeof out->host, host, values) && set_port(out, tls) == 0 &&
      fill(out->client_id, sizeof out->client_id, client_id, values) &&
      fill(out->user_name, sizeof out->user_name, "$0&$1", values) &&
      fill(signed_text, sizeof signed_text, to_sign, values) &&
      hmac(secret, strlen(secret), signed_text, strlen(signed_text), mac) >= 0) {
    for (int i = 0; i < 2 * DIGEST; i++) out->password[i] = "0123456789abcdef"[mac[i / 2] >> (i % 2 ? 0 : 4) & 15];
    cd_wipe(mac, sizeof mac);
    return 0;
  }
  memset(out, 0, sizeof *out);
  return -1;
}
