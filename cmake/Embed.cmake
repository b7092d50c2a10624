# SPDX-License-Identifier: Apache-2.0
# mb_embed(FILE HEADER NAME): a file as a NUL-terminated array in a C header,
# made when CMake runs, again when the file changes.
function(mb_embed file header name)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
    file(READ ${file} hex HEX)
    string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
    string(REGEX REPLACE "(................................................................................)"
        "\\1\n" bytes "${bytes}")
    set(text "static const unsigned char ${name}[] = {\n${bytes}0x00};\n")
    set(old "")
    if(EXISTS ${header})
        file(READ ${header} old)
    endif()
    if(NOT old STREQUAL text)
        file(WRITE ${header} "${text}")
    endif()
endfunction()
