/* MPS2 boards: the clock, and the LAN9118 Ethernet controller (SMSC data sheet LAN9118). The
 * Makefile says where the controller is and how fast the clock runs. */
#include "board.h"

#define RX_DATA REGISTER(LAN9118_BASE + 0x00)
#define TX_DATA REGISTER(LAN9118_BASE + 0x20)
#define RX_STATUS REGISTER(LAN9118_BASE + 0x40)
#define TX_STATUS REGISTER(LAN9118_BASE + 0x48)
#define INTERRUPTS REGISTER(LAN9118_BASE + 0x5c)
#define RX_CONFIG REGISTER(LAN9118_BASE + 0x6c)
#define TX_CONFIG REGISTER(LAN9118_BASE + 0x70)
#define HARDWARE_CONFIG REGISTER(LAN9118_BASE + 0x74)
#define RX_INFORMATION REGISTER(LAN9118_BASE + 0x7c)
#define TX_INFORMATION REGISTER(LAN9118_BASE + 0x80)
#define MAC_COMMAND REGISTER(LAN9118_BASE + 0xa4)
#define MAC_VALUE REGISTER(LAN9118_BASE + 0xa8)

enum { MAC_CONTROL = 1, MAC_ADDRESS_HIGH = 2, MAC_ADDRESS_LOW = 3 };
enum { MAC_TRANSMITS = 8, MAC_RECEIVES = 4, MAC_FULL_DUPLEX = 1 << 20 };
enum { HARDWARE_RESET = 1, HARDWARE_MUST_BE_ONE = 1 << 20, TX_FIFO_8_KB = 8 << 16, TX_ON = 2 };
enum { TX_FIRST = 1 << 13, TX_LAST = 1 << 12, RX_ERROR = 1 << 15 };
enum { CHECKSUM = 4, COMMANDS = 8 };

const uint32_t board_clock_hz = CLOCK_HZ;

static size_t words_left;

void board_clock_start(void) {} /* The board's clock needs no setting. */

/* Waits until a bit of a register is clear. The chip needs microseconds; without one, the bound
 * lets the board start without a network. */
static void until_clear(volatile const uint32_t *watched, uint32_t bit) {
  for (uint32_t tries = 0; tries < 100000 && *watched & bit; tries++) {
  }
}

static void mac_write(uint32_t number, uint32_t value) {
  const uint32_t busy = 1u << 31;
  until_clear(&MAC_COMMAND, busy);
  MAC_VALUE = value;
  MAC_COMMAND = busy | number;
  until_clear(&MAC_COMMAND, busy);
}

void board_net_start(const uint8_t mac[6]) {
  HARDWARE_CONFIG = HARDWARE_RESET;
  until_clear(&HARDWARE_CONFIG, HARDWARE_RESET);
  HARDWARE_CONFIG = HARDWARE_MUST_BE_ONE | TX_FIFO_8_KB;
  INTERRUPTS = 0;
  RX_CONFIG = FRAME_PADDING << 8;
  TX_CONFIG = TX_ON;
  mac_write(MAC_ADDRESS_HIGH, mac[4] | (uint32_t)mac[5] << 8);
  mac_write(MAC_ADDRESS_LOW, mac[0] | (uint32_t)mac[1] << 8 | (uint32_t)mac[2] << 16 | (uint32_t)mac[3] << 24);
  mac_write(MAC_CONTROL, MAC_FULL_DUPLEX | MAC_TRANSMITS | MAC_RECEIVES);
}

size_t board_net_begin(void) {
  if ((RX_INFORMATION >> 16 & 0xff) == 0) return 0;
  uint32_t status = RX_STATUS;
  size_t length = status >> 16 & 0x3fff;
  words_left = (FRAME_PADDING + length + 3) / 4;
  if (status & RX_ERROR || length <= CHECKSUM) {
    board_net_end();
    return 0;
  }
  return FRAME_PADDING + length - CHECKSUM;
}

uint32_t board_net_read(void) {
  if (words_left == 0) return 0;
  words_left--;
  return RX_DATA;
}

void board_net_end(void) {
  for (; words_left > 0; words_left--) (void)RX_DATA;
}

bool board_net_send(const uint32_t *frame, size_t length) {
  while (TX_INFORMATION >> 16 & 0xff) (void)TX_STATUS; /* an unread status would block the FIFO */
  if (length < FRAME_PADDING || length > FRAME_MAX || (TX_INFORMATION & 0xffff) < length + COMMANDS + 4) return false;
  uint32_t bytes = (uint32_t)length - FRAME_PADDING;
  TX_DATA = FRAME_PADDING << 16 | TX_FIRST | TX_LAST | bytes;
  TX_DATA = bytes;
  for (size_t sent = 0; sent < length; sent += 4) TX_DATA = *frame++;
  return true;
}
