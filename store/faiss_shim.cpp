/* SPDX-License-Identifier: Apache-2.0
 * store/faiss_shim.cpp - the part of FAISS's C library that we call.
 *
 * Debian ships FAISS's C headers without the library behind them. These are
 * its functions, under the headers' names and with their error codes, so that
 * a system with libfaiss_c needs only the last two. No exception gets out; the
 * text of the last one waits in faiss_get_last_error().
 * Threads: as FAISS; the last error is each thread's own. */
#include <exception>
#include <stdexcept>

#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>
#include <faiss/c_api/Clustering_c.h>
#include <faiss/c_api/IndexFlat_c.h>
#include <faiss/c_api/error_c.h>
#include <faiss/impl/FaissException.h>
#include <omp.h>

#include "faiss_shim.h"

namespace
{

thread_local std::exception_ptr last_exception;

/* Runs body; what it throws becomes a code of FaissErrorCode. */
template <typename Body>
int
guarded(Body body) noexcept
{
    try {
        body();
        return OK;
    } catch (faiss::FaissException &) {
        last_exception = std::current_exception();
        return FAISS_EXCEPT;
    } catch (std::exception &) {
        last_exception = std::current_exception();
        return STD_EXCEPT;
    } catch (...) {
        last_exception = std::current_exception();
        return UNKNOWN_EXCEPT;
    }
}

faiss::Index *
index_of(FaissIndex *index)
{
    return reinterpret_cast<faiss::Index *>(index);
}

faiss::Clustering *
clustering_of(FaissClustering *clustering)
{
    return reinterpret_cast<faiss::Clustering *>(clustering);
}

} // namespace

extern "C" {

const char *
faiss_get_last_error()
{
    if (!last_exception) {
        return nullptr;
    }
    try {
        std::rethrow_exception(last_exception);
    } catch (std::exception &e) {
        return e.what();
    } catch (...) {
        return "not a standard exception";
    }
}

int
faiss_IndexFlatIP_new_with(FaissIndexFlatIP **p_index, idx_t d)
{
    return guarded([&] {
        *p_index = reinterpret_cast<FaissIndexFlatIP *>(
            static_cast<faiss::Index *>(new faiss::IndexFlatIP(d)));
    });
}

int
faiss_Index_add(FaissIndex *index, idx_t n, const float *x)
{
    return guarded([&] { index_of(index)->add(n, x); });
}

int
faiss_Index_search(const FaissIndex *index, idx_t n, const float *x, idx_t k,
    float *distances, idx_t *labels)
{
    return guarded([&] {
        reinterpret_cast<const faiss::Index *>(index)->search(
            n, x, k, distances, labels);
    });
}

void
faiss_Index_free(FaissIndex *index)
{
    delete index_of(index);
}

void
faiss_ClusteringParameters_init(FaissClusteringParameters *params)
{
    const faiss::ClusteringParameters p;

    params->niter = p.niter;
    params->nredo = p.nredo;
    params->verbose = p.verbose;
    params->spherical = p.spherical;
    params->int_centroids = p.int_centroids;
    params->update_index = p.update_index;
    params->frozen_centroids = p.frozen_centroids;
    params->min_points_per_centroid = p.min_points_per_centroid;
    params->max_points_per_centroid = p.max_points_per_centroid;
    params->seed = p.seed;
    params->decode_block_size = p.decode_block_size;
}

int
faiss_Clustering_new_with_params(FaissClustering **p_clustering, int d, int k,
    const FaissClusteringParameters *cp)
{
    return guarded([&] {
        faiss::ClusteringParameters p;

        p.niter = cp->niter;
        p.nredo = cp->nredo;
        p.verbose = cp->verbose != 0;
        p.spherical = cp->spherical != 0;
        p.int_centroids = cp->int_centroids != 0;
        p.update_index = cp->update_index != 0;
        p.frozen_centroids = cp->frozen_centroids != 0;
        p.min_points_per_centroid = cp->min_points_per_centroid;
        p.max_points_per_centroid = cp->max_points_per_centroid;
        p.seed = cp->seed;
        p.decode_block_size = cp->decode_block_size;
        *p_clustering =
            reinterpret_cast<FaissClustering *>(new faiss::Clustering(d, k, p));
    });
}

int
faiss_Clustering_train(
    FaissClustering *clustering, idx_t n, const float *x, FaissIndex *index)
{
    return guarded(
        [&] { clustering_of(clustering)->train(n, x, *index_of(index)); });
}

void
faiss_Clustering_centroids(
    FaissClustering *clustering, float **centroids, size_t *size)
{
    faiss::Clustering *c = clustering_of(clustering);

    *centroids = c->centroids.data();
    *size = c->centroids.size();
}

void
faiss_Clustering_free(FaissClustering *clustering)
{
    delete clustering_of(clustering);
}

/* ---- not in FAISS's C headers ---- */

int
shim_Clustering_set_centroids(FaissClustering *clustering, const float *x)
{
    return guarded([&] {
        faiss::Clustering *c = clustering_of(clustering);

        c->centroids.assign(x, x + c->k * c->d);
    });
}

void
shim_set_openmp_threads(int n)
{
    omp_set_num_threads(n);
}

} // extern "C"
