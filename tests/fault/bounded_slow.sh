#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# ctest: label=slow timeout=900
# tests/fault/bounded_slow.sh - test_store_bounded at full size: 100,000 single
# puts, and as many replacements.
MB_PUTS=100000 exec "$MB_BINARY_DIR/tests/test_store_bounded"
