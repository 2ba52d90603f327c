#include "print.h"

#include "semihosting.h"

#include <stdarg.h>
#include <stddef.h>

void print(const char *first, ...) {
  va_list texts;
  va_start(texts, first);
  for (const char *text = first; text; text = va_arg(texts, const char *)) semihosting_print(text);
  va_end(texts);
}

const char *decimal(uint32_t number) {
  static char texts[5][11];
  static unsigned turn;
  char *text = texts[turn++ % 5] + 10;
  do *--text = (char)('0' + number % 10);
  while (number /= 10);
  return text;
}
