#include "cd_esp.h"

#include <esp_random.h>
#include <esp_timer.h>
#include <nvs.h>

#define NAMESPACE "certdist"
#define RECORD "record"

int cd_random(void *out, size_t length) {
  esp_fill_random(out, length);
  return 0;
}

static uint32_t now_ms(void *arg) {
  (void)arg;
  return (uint32_t)(esp_timer_get_time() / 1000);
}

static int load(void *arg, void *record, size_t room) {
  nvs_handle_t nvs;
  (void)arg;
  esp_err_t result = nvs_open(NAMESPACE, NVS_READONLY, &nvs);
  if (result == ESP_ERR_NVS_NOT_FOUND) return 0;
  if (result != ESP_OK) return -1;
  result = nvs_get_blob(nvs, RECORD, record, &room);
  nvs_close(nvs);
  return result == ESP_OK ? (int)room : result == ESP_ERR_NVS_NOT_FOUND ? 0 : -1;
}

static int save(void *arg, const void *record, size_t length) {
  nvs_handle_t nvs;
  (void)arg;
  if (nvs_open(NAMESPACE, NVS_READWRITE, &nvs) != ESP_OK) return -1;
  esp_err_t result = length > 0 ? nvs_set_blob(nvs, RECORD, record, length) : nvs_erase_key(nvs, RECORD);
  if (length == 0 && result == ESP_ERR_NVS_NOT_FOUND) result = ESP_OK;
  if (result == ESP_OK) result = nvs_commit(nvs);
  nvs_close(nvs);
  return result == ESP_OK ? 0 : -1;
}

struct cd_port cd_esp_port(struct cd_socket *socket) {
  struct cd_port port = {socket, now_ms, cd_socket_send, load, save};
  return port;
}
