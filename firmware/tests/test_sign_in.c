/* The sign-in. The passwords were computed with Python's hmac and with the server's own code
 * (src/iot_platform/sign_in.rs), which agree. */
#include "world.h"

/* The library under test: HMAC=cd_hmac_tinydtls or cd_hmac_mbedtls. */
#ifndef HMAC
#define HMAC cd_hmac_mbedtls
#endif

static struct cd_certificate example(const char *host) {
  struct cd_certificate certificate;
  memset(&certificate, 0, sizeof certificate);
  strcpy(certificate.product_key, "a1BwAGVxyz1");
  strcpy(certificate.device_name, "SN01");
  strcpy(certificate.device_secret, "0123456789abcdef0123456789abcdef");
  strcpy(certificate.host, host);
  return certificate;
}

void a_sign_in_is_as_documented(void) {
  struct cd_certificate certificate = example("iot-06z00abc.mqtt.iothub.aliyuncs.com");
  struct cd_sign_in sign_in;
  CHECK(cd_sign_in(&certificate, NULL, false, HMAC, &sign_in) == 0);
  CHECK(strcmp(sign_in.host, "iot-06z00abc.mqtt.iothub.aliyuncs.com") == 0 && sign_in.port == 1883);
  CHECK(strcmp(sign_in.client_id, "SN01|securemode=3,signmethod=hmacsha256|") == 0);
  CHECK(strcmp(sign_in.user_name, "SN01&a1BwAGVxyz1") == 0);
  CHECK(strcmp(sign_in.password, "f782fb06ccebd99226d022db19918e3dbacfe67fa17ff0a055323387b5703201") == 0);

  CHECK(cd_sign_in(&certificate, NULL, true, HMAC, &sign_in) == 0);
  CHECK(sign_in.port == 8883 && strcmp(sign_in.client_id, "SN01|securemode=2,signmethod=hmacsha256|") == 0);
  CHECK(strcmp(sign_in.password, "f782fb06ccebd99226d022db19918e3dbacfe67fa17ff0a055323387b5703201") == 0);
}

void the_longest_certificate_signs_in(void) {
  struct cd_certificate certificate = example("");
  struct cd_sign_in sign_in;
  memset(certificate.product_key, 'k', 64);
  memset(certificate.device_name, 'P', 32);
  memset(certificate.device_secret, 's', 64);
  CHECK(cd_sign_in(&certificate, "cn-shanghai", true, HMAC, &sign_in) == 0);
  CHECK(strcmp(sign_in.password, "1a68647358f8d42bc1b87f1e97cc34b30883b32ed85029cb3d4dda922937b6c3") == 0);
  CHECK(strlen(sign_in.user_name) == 97 && strlen(sign_in.client_id) == 32 + 36);
}

void the_host_is_the_certificates_or_the_firmwares(void) {
  static const struct {
    const char *of_certificate, *where, *host;
    uint16_t port; /* without TLS */
  } hosts[] = {
      {"h.example", "other.example", "h.example", 1883},
      {"h.example:1884", NULL, "h.example", 1884},
      {"", "h.example:65535", "h.example", 65535},
      {"", "cn-shanghai", "a1BwAGVxyz1.iot-as-mqtt.cn-shanghai.aliyuncs.com", 1883},
      {"", NULL, NULL, 0},
      {"", "", NULL, 0},
      {":1883", NULL, NULL, 0},
      {"h:", NULL, NULL, 0},
      {"h:0", NULL, NULL, 0},
      {"h:65536", NULL, NULL, 0},
      {"h:99999999999", NULL, NULL, 0},
      {"h:1x", NULL, NULL, 0},
  };
  for (size_t i = 0; i < sizeof hosts / sizeof hosts[0]; i++) {
    struct cd_certificate certificate = example(hosts[i].of_certificate);
    struct cd_sign_in sign_in;
    int result = cd_sign_in(&certificate, hosts[i].where, false, HMAC, &sign_in);
    CHECK(result == (hosts[i].host ? 0 : -1));
    if (hosts[i].host) CHECK(strcmp(sign_in.host, hosts[i].host) == 0 && sign_in.port == hosts[i].port);
    else CHECK(sign_in.password[0] == 0 && sign_in.host[0] == 0);
  }
}

void names_that_would_change_the_fields_are_refused(void) {
  static const char *const names[] = {"SN|1", "SN&1", "SN,1", "SN 1", ""};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    struct cd_certificate certificate = example("h");
    struct cd_sign_in sign_in;
    strcpy(certificate.device_name, names[i]);
    CHECK(cd_sign_in(&certificate, NULL, false, HMAC, &sign_in) < 0);
    certificate = example("h");
    strcpy(certificate.product_key, names[i]);
    CHECK(cd_sign_in(&certificate, NULL, false, HMAC, &sign_in) < 0);
  }
}

static int no_hmac(const void *key, size_t key_length, const void *text, size_t length, uint8_t mac[32]) {
  (void)key, (void)key_length, (void)text, (void)length, (void)mac;
  return -1;
}

void a_failing_hmac_is_no_sign_in(void) {
  struct cd_certificate certificate = example("h");
  struct cd_sign_in sign_in;
  CHECK(cd_sign_in(&certificate, NULL, false, no_hmac, &sign_in) < 0 && sign_in.client_id[0] == 0);
}

void hmac_matches_rfc_4231(void) {
  /* Test cases 2 and 6: a short key, and one that is longer than a block. */
  uint8_t mac[32], key[131];
  CHECK(HMAC("Jefe", 4, "what do ya want for nothing?", 28, mac) == 0);
  CHECK(memcmp(mac, "\x5b\xdc\xc1\x46\xbf\x60\x75\x4e\x6a\x04\x24\x26\x08\x95\x75\xc7", 16) == 0);
  memset(key, 0xaa, sizeof key);
  CHECK(HMAC(key, sizeof key, "Test Using Larger Than Block-Size Key - Hash Key First", 54, mac) == 0);
  CHECK(memcmp(mac, "\x60\xe4\x31\x59\x1e\xe0\xb6\x7f\x0d\x8a\x26\xaa\xcb\xf5\xb7\x7f", 16) == 0);
}
