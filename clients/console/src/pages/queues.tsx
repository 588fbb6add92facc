import { createClient } from "@connectrpc/connect";
import { useInfiniteQuery, useMutation, useQuery, useTransport } from "@connectrpc/connect-query";
import { Button, Drawer, Group, Select, Stack, Text, Title } from "@mantine/core";
import { type Job, JobSchema, JobState } from "../../../../gen/moltwire/queue/v1/job_pb.ts";
import { QueueService, type QueueStats } from "../../../../gen/moltwire/queue/v1/queue_service_pb.ts";
import { useRefresh } from "../live/use-live.ts";
import { useWord } from "../parts/address.ts";
import { useReadAgain } from "../parts/again.ts";
import { Bulk, type Work } from "../parts/bulk.tsx";
import { AsCommand, callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { type Column, List } from "../parts/list.tsx";
import { useAgentNames } from "../parts/names.ts";
import { Payload, useIsKept } from "../parts/reveal.tsx";
import { Empty, Facts, Head, Mono, Raw, State, type Tone } from "../parts/show.tsx";
import { agoText, countText, enumText, shortId, timeText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { getQueueStats, listJobs, listDeadJobs, getJob, redriveJob, cancelJob } = QueueService.method;

const tones: Readonly<Record<number, Tone>> = {
  [JobState.UNSPECIFIED]: "off",
  [JobState.SCHEDULED]: "off",
  [JobState.PENDING]: "wait",
  [JobState.LEASED]: "wait",
  [JobState.COMPLETED]: "good",
  [JobState.FAILED]: "bad",
  [JobState.CANCELED]: "off",
};

const choices = [
  { value: "", label: "Waiting and under way" },
  { value: String(JobState.SCHEDULED), label: "Scheduled" },
  { value: String(JobState.PENDING), label: "Pending" },
  { value: String(JobState.LEASED), label: "Under way" },
  { value: String(JobState.COMPLETED), label: "Completed" },
  { value: String(JobState.FAILED), label: "Dead" },
  { value: String(JobState.CANCELED), label: "Canceled" },
];

/** How the queues stand, their jobs, and what is dead in them. */
export function Queues() {
  const orgId = useOrg();
  const [queue, choose] = useWord("queue");
  const stats = useQuery(getQueueStats, { orgId });
  useRefresh([getQueueStats, listJobs, listDeadJobs], ({ type }) => type.startsWith("job."), 1_000);
  const columns: readonly Column<QueueStats>[] = [
    { name: "Queue", show: (one) => one.queue },
    { name: "Pending", right: true, show: (one) => countText(one.pending) },
    { name: "Under way", wide: true, right: true, show: (one) => countText(one.leased) },
    { name: "Scheduled", wide: true, right: true, show: (one) => countText(one.scheduled) },
    {
      name: "Dead",
      right: true,
      show: (one) => (one.failed > 0n ? <State tone="bad">{countText(one.failed)}</State> : "0"),
    },
    { name: "Oldest waits", wide: true, right: true, show: (one) => agoText(one.oldestPendingTime) },
    {
      name: "Last hour",
      wide: true,
      right: true,
      show: ({ lastHour }) => lastHour && `${countText(lastHour.submitted)} in, ${countText(lastHour.completed)} done`,
    },
  ];
  return (
    <>
      <Head title="Queues" call={callOf(getQueueStats, { orgId })} onRefresh={() => void stats.refetch()} />
      <List
        label="Queues"
        rows={stats.data?.queues ?? []}
        columns={columns}
        keyOf={(one) => one.queue}
        onOpen={(one) => choose(one.queue === queue ? "" : one.queue)}
        isPending={stats.isPending}
        error={stats.error}
        empty={
          <Empty
            title="No queues"
            command={`curl -sS ${window.location.origin}/moltwire.queue.v1.QueueService/SubmitJob \\\n  -H "authorization: Bearer $MOLTWIRE_API_KEY" -H 'content-type: application/json' \\\n  -d '{"job":{"queue":"mail","payload":{"json":{"to":"ada"}}}}'`}
          >
            A queue begins with its first job. To submit one:
          </Empty>
        }
      />
      {(stats.data?.queues.length ?? 0) > 0 && <Jobs key={queue} queue={queue} />}
    </>
  );
}

function Jobs({ queue }: { queue: string }) {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const [word, setWord] = useWord("state");
  const [opened, open] = useWord("job");
  const state = Number(word) as JobState;
  const isDead = state === JobState.FAILED;
  const paging = {
    pageParamKey: "pageToken" as const,
    getNextPageParam: ({ nextPageToken }: { nextPageToken: string }) => nextPageToken || undefined,
  };
  const living = useInfiniteQuery(
    listJobs,
    { orgId, queue, states: state ? [state] : [], pageSize: 50, pageToken: "" },
    { ...paging, enabled: !isDead },
  );
  const dead = useInfiniteQuery(
    listDeadJobs,
    { orgId, queue, pageSize: 50, pageToken: "" },
    { ...paging, enabled: isDead },
  );
  const jobs = isDead ? dead : living;
  const client = createClient(QueueService, useTransport());
  const all = { orgId, subject: { case: "queue", value: queue } } as const;
  /** The dead jobs of the queue, a thousand in each call. */
  const countDead = async (signal: AbortSignal): Promise<Work> => {
    const { queues } = await client.getQueueStats({ orgId }, { signal });
    return {
      count: Number(queues.find((one) => one.queue === queue)?.failed ?? 0n),
      isMore: false,
      run: async (tell, stop) => {
        for (let done = 0, more = true; more && !stop.aborted; ) {
          const answer = await client.redriveJob(all);
          done += answer.redriven;
          more = answer.more;
          tell({ done, failed: 0 });
        }
      },
    };
  };
  const columns: readonly Column<Job>[] = [
    { name: "State", show: (job) => <State tone={tones[job.state] ?? "off"}>{enumText(JobState, job.state)}</State> },
    { name: "Job", show: (job) => <Mono>{shortId(job.jobId)}</Mono> },
    { name: "Queue", wide: true, show: (job) => job.queue },
    { name: "Worker", wide: true, show: (job) => job.workerAgentId && nameOf(job.workerAgentId) },
    { name: "Attempts", wide: true, right: true, show: (job) => `${job.attempts} of ${job.maxAttempts}` },
    {
      name: "Error",
      wide: true,
      show: (job) => <div className="fit">{job.error && `${job.error.code} ${job.error.message}`}</div>,
    },
    { name: "Age", right: true, show: (job) => agoText(job.createTime) },
  ];
  return (
    <>
      <Group justify="space-between" mt="xl" mb="xs">
        <Title order={2} size="h4">
          Jobs {queue && `of ${queue}`}
        </Title>
        <Group gap="xs">
          {isDead && queue !== "" && (
            <Bulk
              label="Redrive all"
              title={`Redrive the dead jobs of ${queue}?`}
              about="Oldest death first; each is tried as often again as before."
              prepare={countDead}
              call={callOf(redriveJob, all)}
              again={[getQueueStats, listJobs, listDeadJobs]}
            />
          )}
          <Select
            size="xs"
            aria-label="State"
            data={choices}
            value={word}
            onChange={(value) => setWord(value ?? "")}
            allowDeselect={false}
          />
          <AsCommand
            call={
              isDead
                ? callOf(listDeadJobs, { orgId, queue })
                : callOf(listJobs, { orgId, queue, states: state ? [state] : [] })
            }
          />
        </Group>
      </Group>
      <List
        label="Jobs"
        rows={jobs.data?.pages.flatMap((page) => page.jobs) ?? []}
        columns={columns}
        keyOf={({ jobId }) => jobId}
        onOpen={({ jobId }) => open(jobId)}
        isPending={jobs.isPending}
        error={jobs.error}
        more={jobs.hasNextPage ? () => void jobs.fetchNextPage() : undefined}
        isFetchingMore={jobs.isFetchingNextPage}
        empty={<Text size="sm">None in this state.</Text>}
      />
      <Drawer opened={opened !== ""} onClose={() => open("")} position="right" size="lg" title="Job">
        {opened !== "" && <Details jobId={opened} />}
      </Drawer>
    </>
  );
}

/** One job, and what can be done about it. */
function Details({ jobId }: { jobId: string }) {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const readAgain = useReadAgain();
  const isKept = useIsKept();
  const { data, error } = useQuery(getJob, { orgId, jobId });
  const onSuccess = async () => {
    await readAgain([getQueueStats, listJobs, listDeadJobs, getJob]);
  };
  const redrive = useMutation(redriveJob, { onSuccess });
  const cancel = useMutation(cancelJob, { onSuccess });
  const job = data?.job;
  if (!job) return error ? <Failure error={error} /> : null;
  const again = { orgId, subject: { case: "jobId", value: jobId } } as const;
  return (
    <Stack>
      <Facts
        facts={[
          [
            "State",
            <State key="state" tone={tones[job.state] ?? "off"}>
              {enumText(JobState, job.state)}
            </State>,
          ],
          ["Id", <Mono key="id">{jobId}</Mono>],
          ["Queue", job.queue],
          [
            "Attempts",
            `${job.attempts} of ${job.maxAttempts}${job.redrives > 0 ? `, redriven ${job.redrives} times` : ""}`,
          ],
          ["Submitted by", nameOf(job.submitterAgentId)],
          ["Worker", job.workerAgentId && nameOf(job.workerAgentId)],
          ["Submitted", timeText(job.createTime)],
          ["Ended", job.endTime && timeText(job.endTime)],
          ["Error", job.error && `${job.error.code}: ${job.error.message}`],
        ]}
      />
      {(redrive.error ?? cancel.error) && <Failure error={redrive.error ?? cancel.error} />}
      <Group>
        {job.state === JobState.FAILED && (
          <Button onClick={() => redrive.mutate(again)} loading={redrive.isPending}>
            Redrive
          </Button>
        )}
        {job.state > JobState.UNSPECIFIED && job.state < JobState.COMPLETED && (
          <Button variant="default" onClick={() => cancel.mutate({ orgId, jobId })} loading={cancel.isPending}>
            Cancel
          </Button>
        )}
        <AsCommand call={callOf(getJob, { orgId, jobId })} />
      </Group>
      {isKept && <Payload subject={{ case: "jobId", value: jobId }}>{null}</Payload>}
      <Raw schema={JobSchema} message={job} />
    </Stack>
  );
}
