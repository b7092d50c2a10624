# SPDX-License-Identifier: Apache-2.0
# What we stand on; tools/setup installs it on Debian and Ubuntu.
find_package(PkgConfig REQUIRED)
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

function(mb_pkg target name)
    pkg_check_modules(${target} REQUIRED IMPORTED_TARGET GLOBAL ${name})
endfunction()

function(mb_lib target header library)
    find_path(${target}_INCLUDE ${header})
    find_library(${target}_LIBRARY ${library})
    if(NOT ${target}_INCLUDE OR NOT ${target}_LIBRARY)
        message(FATAL_ERROR
            "${header} or lib${library} not found: run tools/setup")
    endif()
    add_library(${target} INTERFACE)
    target_include_directories(${target} SYSTEM INTERFACE
        ${${target}_INCLUDE})
    target_link_libraries(${target} INTERFACE ${${target}_LIBRARY})
endfunction()

mb_pkg(ZMQ libzmq)
mb_pkg(MSGPACK msgpack)
mb_pkg(ZSTD libzstd)
mb_pkg(UTF8PROC libutf8proc)
mb_pkg(ZLIB zlib)
mb_lib(LMDB lmdb.h lmdb)
mb_lib(STEMMER libstemmer.h stemmer)

# OpenBLAS by name: the system's default BLAS may be another one.
pkg_check_modules(OPENBLAS REQUIRED IMPORTED_TARGET GLOBAL openblas)
# Debian's FAISS has the C headers but no C library: store/faiss_shim.cpp.
find_path(FAISS_INCLUDE faiss/c_api/faiss_c.h)
find_library(FAISS_LIBRARY faiss)
if(NOT FAISS_INCLUDE OR NOT FAISS_LIBRARY)
    message(FATAL_ERROR "FAISS not found: run tools/setup")
endif()
find_package(OpenMP REQUIRED COMPONENTS CXX)
