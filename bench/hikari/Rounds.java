import com.sun.management.OperatingSystemMXBean;
import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.lang.management.ManagementFactory;
import java.sql.Connection;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.postgresql.jdbc.PgConnection;
import org.postgresql.util.DriverInfo;

/**
 * HikariCP under the loads of bench/: each line of standard input is one round to run, a flat JSON
 * object, and is answered by one line of JSON. It ends with its input.
 *
 * Owns: the loops of cycles.py and threads.py, in Java. Refuses: to decide what is measured, when,
 * and how often.
 *
 * usage: Rounds JDBC-URL USER PASSWORD
 */
public final class Rounds {
    private static final Pattern FIELD =
            Pattern.compile("\"(\\w+)\":\\s*(?:\"([^\"]*)\"|([-+.\\deE]+))");
    private static final int NOBODY = -1;
    private static final OperatingSystemMXBean SYSTEM =
            ManagementFactory.getPlatformMXBean(OperatingSystemMXBean.class);

    private final String url;
    private final String user;
    private final String password;
    private final Map<PgConnection, AtomicInteger> holders = new ConcurrentHashMap<>();
    private HikariDataSource pool;
    private boolean warm;

    private interface Hold {
        void keep(Connection connection) throws Exception;
    }

    private Rounds(String url, String user, String password) {
        this.url = url;
        this.user = user;
        this.password = password;
    }

    public static void main(String[] args) throws Exception {
        Rounds rounds = new Rounds(args[0], args[1], args[2]);
        System.out.printf(
                "{\"jdbc\": \"%s\", \"java\": \"%s\"}%n",
                DriverInfo.DRIVER_VERSION, System.getProperty("java.version"));
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = input.readLine()) != null; ) {
            System.out.println(rounds.answer(line));
        }
        rounds.close();
    }

    private String answer(String line) {
        Map<String, String> order = new HashMap<>();
        for (Matcher field = FIELD.matcher(line); field.find(); ) {
            order.put(field.group(1), field.group(2) != null ? field.group(2) : field.group(3));
        }
        try {
            switch (order.get("do")) {
                case "open":
                    open(Integer.parseInt(order.get("size")));
                    return "{}";
                case "cycle":
                    return cycle(order.get("scenario"), Integer.parseInt(order.get("n")));
                case "contend":
                    return contend(
                            Integer.parseInt(order.get("threads")),
                            order.get("hold"),
                            Integer.parseInt(order.get("burners")),
                            Double.parseDouble(order.get("seconds")));
                case "verify":
                    verify();
                    return "{}";
                case "close":
                    close();
                    return "{}";
                default:
                    throw new IllegalArgumentException(line);
            }
        } catch (Throwable error) {
            return "{\"error\": \"" + error.toString().replaceAll("[\"\\\\\\p{Cntrl}]", " ") + "\"}";
        }
    }

    private void open(int size) throws Exception {
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl(url);
        config.setUsername(user);
        config.setPassword(password);
        config.setMaximumPoolSize(size);
        config.setConnectionTimeout(60_000);
        pool = new HikariDataSource(config);
        while (pool.getHikariPoolMXBean().getIdleConnections() < size) {
            Thread.sleep(1);
        }
        if (!warm) {
            // Until the compiler has done its work, which takes so many calls.
            for (int i = 0; i < 20; i++) {
                cycle("getconn_putconn", 20_000);
                cycle("connection_block", 20_000);
            }
            for (String hold : new String[] {"nothing", "SELECT 1", "1 ms"}) {
                contend(2 * size, hold, 0, 0.2);
            }
            warm = true;
        }
    }

    private void close() {
        if (pool != null) {
            pool.close();
        }
        pool = null;
        holders.clear();
    }

    /** Each connection is there once, and answers. */
    private void verify() throws SQLException {
        Connection[] lent = new Connection[pool.getMaximumPoolSize()];
        for (int i = 0; i < lent.length; i++) {
            lent[i] = pool.getConnection();
        }
        long different =
                Arrays.stream(lent).map(Rounds::session).map(System::identityHashCode).distinct().count();
        check(different == lent.length, "a connection is missing");
        for (Connection connection : lent) {
            select(connection);
            connection.close();
        }
    }

    private String cycle(String scenario, int n) throws SQLException {
        // All that its interface has: close() is what gives a connection back.
        boolean block = scenario.equals("connection_block");
        long start = System.nanoTime();
        if (block) {
            for (int i = 0; i < n; i++) {
                try (Connection connection = pool.getConnection()) {
                    continue;
                }
            }
        } else {
            for (int i = 0; i < n; i++) {
                pool.getConnection().close();
            }
        }
        return json("seconds", (System.nanoTime() - start) / 1e9 / n);
    }

    private String contend(int threads, String hold, int burners, double seconds)
            throws Exception {
        Hold keep = hold(hold);
        long[] served = new long[threads];
        long[][] waits = new long[threads][];
        AtomicReference<Throwable> failure = new AtomicReference<>();
        CyclicBarrier gate = new CyclicBarrier(threads + burners + 1);
        AtomicInteger begun = new AtomicInteger();
        AtomicLong deadline = new AtomicLong(Long.MAX_VALUE);
        boolean[] over = new boolean[1];

        Thread[] all = new Thread[threads + burners];
        for (int i = 0; i < threads; i++) {
            int index = i;
            all[i] = new Thread(() -> {
                long[] mine = new long[1024];
                int n = 0;
                try {
                    gate.await();
                    gate.await();
                    if (begun.incrementAndGet() == threads) {
                        deadline.set(System.nanoTime() + (long) (seconds * 1e9));
                    }
                    for (long asked; (asked = System.nanoTime()) < deadline.get(); ) {
                        Connection connection = pool.getConnection();
                        if (n == mine.length) {
                            mine = Arrays.copyOf(mine, 2 * n);
                        }
                        mine[n] = System.nanoTime() - asked;
                        AtomicInteger holder =
                                holders.computeIfAbsent(
                                        session(connection), each -> new AtomicInteger(NOBODY));
                        check(holder.getAndSet(index) == NOBODY, "one connection was lent twice");
                        keep.keep(connection);
                        check(holder.getAndSet(NOBODY) == index, "one connection was lent twice");
                        connection.close();
                        n++;
                    }
                } catch (Throwable error) {
                    failure.compareAndSet(null, error);
                }
                served[index] = n;
                waits[index] = Arrays.copyOf(mine, n);
            });
        }
        for (int i = threads; i < all.length; i++) {
            all[i] = new Thread(() -> {
                try {
                    gate.await();
                    gate.await();
                    while (!isSet(over)) {
                        Thread.onSpinWait();
                    }
                } catch (Throwable error) {
                    failure.compareAndSet(null, error);
                }
            });
        }
        for (Thread thread : all) {
            thread.start();
        }
        gate.await();
        long cpu = SYSTEM.getProcessCpuTime();
        long start = System.nanoTime();
        gate.await();
        for (int i = 0; i < threads; i++) {
            all[i].join();
        }
        double elapsed = (System.nanoTime() - start) / 1e9;
        cpu = SYSTEM.getProcessCpuTime() - cpu;
        set(over);
        for (Thread thread : all) {
            thread.join();
        }
        if (failure.get() != null) {
            throw new IllegalStateException(failure.get());
        }

        long requests = Arrays.stream(served).sum();
        long[] ordered = Arrays.stream(waits).flatMapToLong(Arrays::stream).sorted().toArray();
        return json(
                "rate", requests / elapsed,
                "share",
                        (double) Arrays.stream(served).min().getAsLong()
                                / Arrays.stream(served).max().getAsLong(),
                "cpu_per_op", cpu / 1e9 / requests,
                "wait_p50", quantile(ordered, 0.5),
                "wait_p90", quantile(ordered, 0.9),
                "wait_p99", quantile(ordered, 0.99),
                "wait_p999", quantile(ordered, 0.999),
                "wait_max", quantile(ordered, 1.0));
    }

    private static synchronized boolean isSet(boolean[] flag) {
        return flag[0];
    }

    private static synchronized void set(boolean[] flag) {
        flag[0] = true;
    }

    private static Hold hold(String name) {
        switch (name) {
            case "nothing":
                return connection -> {};
            case "SELECT 1":
                return Rounds::select;
            case "1 ms":
                return connection -> Thread.sleep(1);
            default:
                throw new IllegalArgumentException(name);
        }
    }

    private static void select(Connection connection) throws SQLException {
        try (Statement statement = connection.createStatement();
                ResultSet result = statement.executeQuery("SELECT 1")) {
            check(result.next() && result.getInt(1) == 1, "SELECT 1 is not 1");
        }
    }

    private static PgConnection session(Connection connection) {
        try {
            return connection.unwrap(PgConnection.class);
        } catch (SQLException error) {
            throw new IllegalStateException(error);
        }
    }

    private static void check(boolean holds, String otherwise) {
        if (!holds) {
            throw new IllegalStateException(otherwise);
        }
    }

    private static double quantile(long[] ordered, double part) {
        return ordered[Math.min(ordered.length - 1, (int) (part * ordered.length))] / 1e9;
    }

    private static String json(Object... pairs) {
        StringBuilder text = new StringBuilder("{");
        for (int i = 0; i < pairs.length; i += 2) {
            text.append(i == 0 ? "" : ", ");
            text.append(String.format(Locale.ROOT, "\"%s\": %.12g", pairs[i], pairs[i + 1]));
        }
        return text.append('}').toString();
    }
}
