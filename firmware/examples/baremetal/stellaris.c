/* The LM3S6965: its clock, and its Ethernet controller (data sheet, chapters "System Control" and
 * "Ethernet Controller"). */
#include "board.h"

#define RAW_INTERRUPTS REGISTER(0x400fe050)
#define RCC REGISTER(0x400fe060)
#define RCGC2 REGISTER(0x400fe108)
#define MAC_ACKNOWLEDGE REGISTER(0x40048000)
#define MAC_INTERRUPTS REGISTER(0x40048004)
#define MAC_RECEIVE REGISTER(0x40048008)
#define MAC_TRANSMIT REGISTER(0x4004800c)
#define MAC_DATA REGISTER(0x40048010)
#define MAC_ADDRESS_0 REGISTER(0x40048014)
#define MAC_ADDRESS_1 REGISTER(0x40048018)
#define MAC_PACKETS REGISTER(0x40048034)
#define MAC_START REGISTER(0x40048038)

enum { ETHERNET_HEADER = 14, CHECKSUM = 4 };
enum { TRANSMIT_DUPLEX = 16, TRANSMIT_CHECKSUM = 4, TRANSMIT_PADDING = 2, TRANSMIT_ENABLED = 1 };
enum { RECEIVE_DROPS_BAD_CHECKSUMS = 8, RECEIVE_ENABLED = 1, RECEIVE_RESET = 16 };

#define DIVIDE_BY_16 (15u << 23)
#define DIVIDER_USED (1u << 22)
#define PLL_LOCKED (1u << 6)
#define PLL_BYPASSED (1u << 11)
#define CRYSTAL_8_MHZ (14u << 6)
#define MAIN_OSCILLATOR (0u << 4)

const uint32_t board_clock_hz = 12500000;

static size_t words_left;
static uint32_t first;
static bool is_first;

void board_clock_start(void) {
  /* The PLL's 200 MHz, divided by 16: the divider is chosen and the PLL on before it is used. */
  RCC = DIVIDE_BY_16 | CRYSTAL_8_MHZ | MAIN_OSCILLATOR | PLL_BYPASSED;
  RCC |= DIVIDER_USED;
  for (uint32_t tries = 0; tries < 100000 && !(RAW_INTERRUPTS & PLL_LOCKED); tries++) {
  }
  RCC &= ~PLL_BYPASSED;
}

void board_net_start(const uint8_t mac[6]) {
  RCGC2 |= 1u << 28 | 1u << 30; /* the controller and its PHY */
  MAC_INTERRUPTS = 0;
  MAC_ADDRESS_0 = mac[0] | (uint32_t)mac[1] << 8 | (uint32_t)mac[2] << 16 | (uint32_t)mac[3] << 24;
  MAC_ADDRESS_1 = mac[4] | (uint32_t)mac[5] << 8;
  MAC_RECEIVE = RECEIVE_RESET;
  MAC_RECEIVE = RECEIVE_DROPS_BAD_CHECKSUMS | RECEIVE_ENABLED;
  MAC_TRANSMIT = TRANSMIT_DUPLEX | TRANSMIT_CHECKSUM | TRANSMIT_PADDING | TRANSMIT_ENABLED;
}

/* In the FIFO, a frame's length takes the place of the padding. */
size_t board_net_begin(void) {
  words_left = 0;
  if (MAC_PACKETS == 0) return 0;
  first = MAC_DATA;
  is_first = true;
  size_t length = first & 0xffff;
  words_left = (length + 3) / 4;
  return length > CHECKSUM ? length - CHECKSUM : 0;
}

uint32_t board_net_read(void) {
  if (words_left == 0) return 0;
  words_left--;
  if (!is_first) return MAC_DATA;
  is_first = false;
  return first;
}

void board_net_end(void) {
  while (words_left > 0) (void)board_net_read();
}

bool board_net_send(const uint32_t *frame, size_t length) {
  if (MAC_START & 1 || length < FRAME_PADDING + ETHERNET_HEADER || length > FRAME_MAX) return false;
  /* The controller counts the bytes behind the header. */
  MAC_DATA = (*frame & 0xffff0000) | (uint32_t)(length - FRAME_PADDING - ETHERNET_HEADER);
  for (size_t sent = 4; sent < length; sent += 4) MAC_DATA = *++frame;
  MAC_START = 1;
  return true;
}
