# SPDX-License-Identifier: Apache-2.0
# Compiler flags of all targets: link to mb_flags.
add_library(mb_flags INTERFACE)
target_compile_definitions(mb_flags INTERFACE _POSIX_C_SOURCE=200809L
    MB_VERSION="${PROJECT_VERSION}")
target_compile_options(mb_flags INTERFACE -Wall -Wextra -Wpedantic -Wshadow
    -Wconversion -Wvla -Wformat=2 -fno-math-errno -ffp-contract=off
    $<$<COMPILE_LANGUAGE:C>:-Wstrict-prototypes>
    $<$<COMPILE_LANGUAGE:C>:-Wmissing-prototypes>)
if(MB_WERROR)
    target_compile_options(mb_flags INTERFACE -Werror)
endif()
if(MB_SANITIZE)
    target_compile_options(mb_flags INTERFACE -fsanitize=${MB_SANITIZE}
        -fno-omit-frame-pointer)
    target_link_options(mb_flags INTERFACE -fsanitize=${MB_SANITIZE})
    if(MB_SANITIZE MATCHES "undefined")
        target_compile_options(mb_flags INTERFACE
            -fno-sanitize-recover=undefined)
    endif()
endif()
if(MB_FUZZ)
    # libFuzzer steers by what it sees of our libraries, not of the target alone.
    target_compile_options(mb_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
if(MB_COVERAGE)
    target_compile_options(mb_flags INTERFACE --coverage)
    target_link_options(mb_flags INTERFACE --coverage)
endif()
