/* The port for ESP-IDF and for Arduino on ESP32: lwIP's sockets, NVS, and the chip's clock and
 * random numbers. */
#ifndef CD_ESP_H
#define CD_ESP_H

#include "../posix/cd_socket.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Returns the port. nvs_flash_init has been called, and Wi-Fi or Bluetooth is on: without the radio,
 * the chip's random numbers are not random. The socket must outlive the port. */
struct cd_port cd_esp_port(struct cd_socket *socket);

#ifdef __cplusplus
}
#endif
#endif
