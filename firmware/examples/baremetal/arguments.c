#include "arguments.h"

#include "semihosting.h"

#include <stdlib.h>
#include <string.h>

static char line[512];
static int length;

void arguments_read(void) {
  length = semihosting_arguments(line, sizeof line);
  if (length < 0) semihosting_fail("the command line is missing or too long");
  for (int at = 0; at < length; at++)
    if (line[at] == ' ') line[at] = '\0';
}

const char *argument(const char *name) {
  size_t name_length = strlen(name);
  for (const char *word = line; word < line + length; word += strlen(word) + 1)
    if (strncmp(word, name, name_length) == 0 && word[name_length] == '=') return word + name_length + 1;
  return NULL;
}

uint32_t argument_number(const char *name, uint32_t otherwise) {
  const char *value = argument(name);
  return value ? (uint32_t)strtoul(value, NULL, 10) : otherwise;
}
