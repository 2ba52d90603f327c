/* The MQTT sign-in of IoT Platform: host, client ID, user name, and a password that is an
 * HMAC-SHA256 with the device secret. HMAC comes from the DTLS stack's library. */
#include "cd_internal.h"

#include <string.h>

enum { PORT_PLAIN = 1883, PORT_TLS = 8883, DIGEST = 32 };

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

/* Separates "HOST:PORT". Returns 0, or -1. */
static int set_port(struct cd_sign_in *out, bool tls) {
  size_t length = strlen(out->host), colon = cd_find(out->host, length, ':');
  out->port = tls ? PORT_TLS : PORT_PLAIN;
  if (colon < length) {
    uint32_t port = 0;
    for (const char *digit = out->host + colon + 1; *digit; digit++) {
      if (*digit < '0' || *digit > '9' || port > 6553) return -1;
      port = port * 10 + (uint32_t)(*digit - '0');
    }
    if (port < 1 || port > UINT16_MAX) return -1;
    out->port = (uint16_t)port;
    out->host[colon] = 0;
  }
  return out->host[0] ? 0 : -1;
}

int cd_sign_in(const struct cd_certificate *certificate, const char *where, bool tls, cd_hmac *hmac,
               struct cd_sign_in *out) {
  char signed_text[sizeof "clientIddeviceNameproductKey" + 2 * CD_DEVICE_NAME_ROOM + CD_PRODUCT_KEY_ROOM];
  uint8_t mac[DIGEST];
  const char *host = "$2", *secret = certificate->device_secret;
  const char *values[] = {certificate->device_name, certificate->product_key, certificate->host, tls ? "2" : "3"};
  if (!certificate->host[0]) {
    values[2] = where ? where : "";
    size_t length = strlen(values[2]);
    if (length > 0 && cd_find(values[2], length, '.') == length) host = "$1.iot-as-mqtt.$2.aliyuncs.com";
  }
  /* '&', '|' and ',' separate the fields. The signature covers the fields in alphabetical order of their
   * names. */
  if (cd_is_name(values[0], CD_DEVICE_NAME_ROOM - 1) && cd_is_name(values[1], CD_PRODUCT_KEY_ROOM - 1) &&
      fill(out->host, sizeof out->host, host, values) && set_port(out, tls) == 0 &&
      fill(out->client_id, sizeof out->client_id, "$0|securemode=$3,signmethod=hmacsha256|", values) &&
      fill(out->user_name, sizeof out->user_name, "$0&$1", values) &&
      fill(signed_text, sizeof signed_text, "clientId$0deviceName$0productKey$1", values) &&
      hmac(secret, strlen(secret), signed_text, strlen(signed_text), mac) >= 0) {
    for (int i = 0; i < 2 * DIGEST; i++) out->password[i] = "0123456789abcdef"[mac[i / 2] >> (i % 2 ? 0 : 4) & 15];
    out->password[2 * DIGEST] = 0;
    cd_wipe(mac, sizeof mac);
    return 0;
  }
  memset(out, 0, sizeof *out);
  return -1;
}
