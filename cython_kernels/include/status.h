// SPDX-License-Identifier: MIT
// Status codes of the C core, generated from status.def.
#ifndef BITNET_EDGE_STATUS_H
#define BITNET_EDGE_STATUS_H

typedef enum be_status {
#define BE_STATUS(name, value, python_error, text) name = value,
#include "status.def"
#undef BE_STATUS
} be_status;

// The fixed text of a status, or "unknown status" for a value outside the table.
const char *be_status_text(be_status status);

#endif
