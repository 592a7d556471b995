#!/usr/bin/env bash
# Builds the programs that aios is compared with. Usage:
#
#     build.sh llama.cpp OUT              from the PyPI source package of llama-cpp-python
#     build.sh ik_llama.cpp OUT SOURCE    from a source folder that you have
#
# Programs land in OUT/bin, what they were built from and how in OUT/BUILT. Needs a C++ compiler and
# Python 3 with pip, which fetches CMake and Ninja where there are none. Settings are in the
# environment:
#
#     ISA=native|avx2   everything that this processor has (the default), or AVX2 without AVX-512
#     TARGETS="..."     other programs than those below; one that the tree lacks is left out
#     JOBS=N            compilers at a time; two by default, since each takes up to 2 GB of memory
#     COMMIT=HASH       the commit of a SOURCE that is not a git checkout
set -euo pipefail

readonly PACKAGE=llama-cpp-python VERSION=0.3.36

readonly LLAMA_TARGETS="llama-bench llama-perplexity llama-completion llama-lookup
    llama-speculative llama-speculative-simple"
readonly IK_TARGETS="llama-bench llama-perplexity llama-cli llama-lookup llama-speculative
    llama-sweep-bench"

fail() {
    printf 'build.sh: %s\n' "$1" >&2
    exit 2
}

# CMake and Ninja go to a folder of their own, so that the user's Python stays as it was.
tools() {
    command -v cmake >/dev/null && command -v ninja >/dev/null && return
    [[ -x $out/tools/bin/ninja ]] || {
        python3 -m venv "$out/tools"
        "$out/tools/bin/pip" install --quiet cmake ninja
    }
    PATH="$out/tools/bin:$PATH"
}

# Only this package is taken as source: with all of them, pip would build CMake itself, for an hour.
unpack_llama() {
    local unpacked="$out/${PACKAGE//-/_}-$VERSION"
    source="$unpacked/vendor/llama.cpp"
    if [[ ! -f $source/CMakeLists.txt ]]; then
        [[ -f $unpacked.tar.gz ]] || python3 -m pip download --quiet --no-deps \
            --no-binary="$PACKAGE" --dest "$out" "$PACKAGE==$VERSION"
        tar -xzf "$unpacked.tar.gz" -C "$out"
    fi
    # The package has no history of llama.cpp; its list of changes names the commit.
    commit=${COMMIT:-$(sed -n 's/.*ggml-org\/llama.cpp@\([0-9a-f]*\).*/\1/p' \
        "$unpacked/CHANGELOG.md" | head -n 1)}
    [[ -n $commit ]] || fail "$unpacked/CHANGELOG.md names no commit"
    targets=${TARGETS:-$LLAMA_TARGETS}
    options+=(-DLLAMA_BUILD_COMMIT="$commit" -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF)
}

# The kernels for quantised caches below 8 bits take long to compile and are not compared.
prepare_ik() {
    source=$1
    [[ -f $source/CMakeLists.txt ]] || fail "no CMakeLists.txt in $source"
    # A folder inside another repository must not be named by that one's commit.
    GIT_CEILING_DIRECTORIES=$(dirname "$(cd "$source" && pwd)")
    export GIT_CEILING_DIRECTORIES
    commit=${COMMIT:-$(git -C "$source" rev-parse --short HEAD 2>/dev/null || echo unknown)}
    targets=${TARGETS:-$IK_TARGETS}
    options+=(-DGGML_IQK_FA_ALL_QUANTS=OFF -DGGML_NCCL=OFF -DLLAMA_CURL=OFF)
}

# GCC before 13 believes that the instruction which configures AMX tiles reads eight bytes, and
# drops the stores of the other 56: every product with AMX would crash. The options keep dead
# stores, in all files, since CMake has no way to name one.
keep_stores() {
    local version
    version=$(c++ -dumpversion | cut -d. -f1)
    c++ --version | grep -qiE 'gcc|g\+\+' && ((version < 13)) || return 0
    grep -qs amx_int8 /proc/cpuinfo || return 0
    options+=("-DCMAKE_CXX_FLAGS=-fno-tree-dse -fno-tree-dce -fno-dse -fno-dce")
}

# A native build of either peer asks the compiler, which then sets what it finds.
isa_options() {
    case $isa in
    native)
        options+=(-DGGML_NATIVE=ON)
        keep_stores
        ;;
    avx2)
        options+=(-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON)
        options+=(-DGGML_BMI2=ON -DGGML_AVX512=OFF)
        ;;
    *) fail "ISA is native or avx2, not $isa" ;;
    esac
}

build() {
    local target found=()
    cmake -S "$source" -B "$out/build" -G Ninja "${options[@]}"
    ninja -C "$out/build" -t targets all >"$out/targets.txt"
    for target in $targets; do
        if grep -q "^$target: phony" "$out/targets.txt"; then
            found+=("$target")
        else
            printf 'build.sh: this tree has no %s\n' "$target" >&2
        fi
    done
    ((${#found[@]} > 0)) || fail "none of the programs is in this tree"
    ninja -C "$out/build" -j "${JOBS:-2}" "${found[@]}"
    mkdir -p "$out/bin"
    for target in "${found[@]}"; do
        cp "$out/build/bin/$target" "$out/bin/"
    done
    {
        printf '%s, commit %s, ISA=%s\n' "$peer" "$commit" "$isa"
        printf '%s\n' "${options[*]}" "$(c++ --version | head -n 1)"
    } >"$out/BUILT"
    cat "$out/BUILT"
}

(($# >= 2)) || fail "usage: build.sh llama.cpp OUT, or build.sh ik_llama.cpp OUT SOURCE"
peer=$1
mkdir -p "$2"
out=$(cd "$2" && pwd)
isa=${ISA:-native}
# Static libraries, so that a program can be moved and never finds another build's.
options=(-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF)
options+=(-DLLAMA_BUILD_SERVER=OFF)
isa_options
tools
case $peer in
llama.cpp) unpack_llama ;;
ik_llama.cpp) prepare_ik "${3:?the source folder of ik_llama.cpp}" ;;
*) fail "unknown peer $peer" ;;
esac
build
