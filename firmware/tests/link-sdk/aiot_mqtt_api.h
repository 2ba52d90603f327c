/* Declares what the example needs of the C Link SDK, which is in no package registry: with it, the
 * compiler checks the example. The SDK's own header has other values for the options. */
#ifndef AIOT_MQTT_API_H
#define AIOT_MQTT_API_H

#include <stdint.h>

typedef enum {
  AIOT_MQTTOPT_HOST,
  AIOT_MQTTOPT_PORT,
  AIOT_MQTTOPT_PRODUCT_KEY,
  AIOT_MQTTOPT_DEVICE_NAME,
  AIOT_MQTTOPT_DEVICE_SECRET
} aiot_mqtt_option_t;

void *aiot_mqtt_init(void);
int32_t aiot_mqtt_setopt(void *handle, aiot_mqtt_option_t option, void *data);
int32_t aiot_mqtt_deinit(void **handle);

#endif
