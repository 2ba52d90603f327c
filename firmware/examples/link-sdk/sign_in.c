/* Hands a fetched certificate to Alibaba Cloud's C Link SDK 4.x, which then signs in by itself. The
 * firmware sets the SDK's TLS credentials, handlers and options on the handle as usual, and calls
 * aiot_mqtt_connect. cd_sign_in computes only where to connect here. */
#include "sign_in.h"

#include "aiot_mqtt_api.h"

void *make_mqtt_client(const struct cd_certificate *certificate, const char *where, bool tls, cd_hmac *hmac) {
  struct cd_sign_in sign_in;
  if (cd_sign_in(certificate, where, tls, hmac, &sign_in) < 0) return NULL;
  void *mqtt = aiot_mqtt_init();
  if (!mqtt) {
    cd_wipe(&sign_in, sizeof sign_in);
    return NULL;
  }
  /* The SDK copies what it is given; its options take pointers that are not const. */
  struct cd_certificate copy = *certificate;
  int32_t result = aiot_mqtt_setopt(mqtt, AIOT_MQTTOPT_HOST, sign_in.host);
  if (result >= 0) result = aiot_mqtt_setopt(mqtt, AIOT_MQTTOPT_PORT, &sign_in.port);
  if (result >= 0) result = aiot_mqtt_setopt(mqtt, AIOT_MQTTOPT_PRODUCT_KEY, copy.product_key);
  if (result >= 0) result = aiot_mqtt_setopt(mqtt, AIOT_MQTTOPT_DEVICE_NAME, copy.device_name);
  if (result >= 0) result = aiot_mqtt_setopt(mqtt, AIOT_MQTTOPT_DEVICE_SECRET, copy.device_secret);
  cd_wipe(&copy, sizeof copy);
  cd_wipe(&sign_in, sizeof sign_in);
  if (result < 0) (void)aiot_mqtt_deinit(&mqtt);
  return result < 0 ? NULL : mqtt;
}
