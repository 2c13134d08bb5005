// SPDX-License-Identifier: MIT
#include "status.h"

const char *be_status_text(be_status status) {
  switch (status) {
#define BE_STATUS(name, value, python_error, text)                                                 \
  case name:                                                                                       \
    return text;
#include "status.def"
#undef BE_STATUS
  }
  return "unknown status";
}
